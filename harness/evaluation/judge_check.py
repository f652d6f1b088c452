"""Measures of a judge's quality, from its judgements of labelled comparisons."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from harness.core.records import COUNTED, Judgement
from harness.evaluation.labelled import FIRST, SECOND, TIE
from harness.evaluation.statistics.intervals import mean_known, wilson_interval


def check_measures(rows: Sequence, judgements: Sequence) -> dict[str, object]:
    """Return measures of a judge from its judgements of labelled comparisons (`Labelled`), None where undefined.

    - `accuracy` with `low` and `high` (Wilson, 95 %), over the `n` comparisons that the labels do not call a tie and
      the judge gave a verdict on; a tie from the judge counts 0.5.
    - `kappa`: Cohen's kappa over first, second and tie, on all comparisons with a verdict.
    - `coverage`: the share of comparisons with a verdict; `missing`: the number of others by status.
    - `flip_rate`: how often the order decided; `first_rate`: the share of verdicts for the response shown first;
      `graded_rate`: the share of verdicts that log-probs grade, the others being 0 or 1.
    - `longer` and `labels_longer`: the share of verdicts, and of labels, for the longer response (without ties and
      equal lengths).
    - `usd_per_1000`: the price of 1,000 comparisons, from the usage of the answers; 0 for a local judge, None if no
      price is known.
    - `subsets`: accuracies by subset, if there are several.
    """
    pairs = [(row, judgement) for row, judgement in zip(rows, judgements, strict=True) if judgement.status in COUNTED]
    preferred = [(row, judgement) for row, judgement in pairs if row.label != TIE]
    subsets = sorted({row.subset for row in rows})
    by_subset = {name: _accuracy([pair for pair in preferred if pair[0].subset == name]) for name in subsets}
    return {
        **_accuracy(preferred),
        "kappa": _kappa([(row.label, _verdict(judgement)) for row, judgement in pairs]),
        "coverage": len(pairs) / len(rows),
        "missing": {status: n for status, n in _counts(judgements).items() if status not in COUNTED},
        "flip_rate": mean_known(judgement.flipped for _, judgement in pairs),
        "first_rate": mean_known(judgement.first for _, judgement in pairs),
        "graded_rate": mean_known(judgement.graded for _, judgement in pairs),
        "longer": _longer([(row, _verdict(judgement)) for row, judgement in pairs]),
        "labels_longer": _longer([(row, row.label) for row, _ in pairs]),
        "usd_per_1000": _price([judgement for _, judgement in pairs]),
        "subsets": by_subset if len(subsets) > 1 else {},
    }


def _accuracy(pairs: Sequence) -> dict[str, float | int | None]:
    verdicts = [(row.label, _verdict(judgement)) for row, judgement in pairs]
    right = sum(0.5 if verdict == TIE else float(verdict == label) for label, verdict in verdicts)
    low, high = map(_or_none, wilson_interval(right, len(pairs)))
    return {"accuracy": right / len(pairs) if pairs else None, "low": low, "high": high, "n": len(pairs)}


def _verdict(judgement: Judgement) -> int:
    return TIE if judgement.preference == 0.5 else FIRST if judgement.preference > 0.5 else SECOND


def _kappa(pairs: Sequence[tuple[int, int]]) -> float | None:
    """Return Cohen's kappa, (observed - expected) / (1 - expected); None for no pairs or an expected agreement of 1."""
    if not pairs:
        return None
    n = len(pairs)
    observed = sum(a == b for a, b in pairs) / n
    expected = sum(
        sum(a == c for a, _ in pairs) * sum(b == c for _, b in pairs) for c in {c for pair in pairs for c in pair}
    ) / (n * n)
    return None if expected == 1 else (observed - expected) / (1 - expected)


def _longer(pairs: Sequence) -> float | None:
    chosen = []
    for row, verdict in pairs:
        lengths = len(row.comparison.response) - len(row.comparison.baseline)
        if verdict != TIE and lengths != 0:
            chosen.append((lengths > 0) == (verdict == FIRST))
    return sum(chosen) / len(chosen) if chosen else None


def _price(judgements: Sequence) -> float | None:
    used = [asdict(judgement.usage)["usd"] for judgement in judgements if judgement.usage]
    if None in used or not judgements:
        return None
    return 1000 * sum(used) / len(judgements)


def _counts(judgements: Sequence) -> dict[str, int]:
    return dict(Counter(judgement.status for judgement in judgements))


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
