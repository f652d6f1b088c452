"""The command `judge-check`: how far a judge agrees with people, on data that no policy has to do with."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict

EPILOG = """examples:
  python -m harness judge-check --judge preference_model --data llmbar
  python -m harness judge-check --judge experiments/rpo_vs_dpo.yaml --data pandalm
  python -m harness judge-check --judge openai:model=gpt-4.1-mini,budget_usd=1 --data llmbar --limit 200
  python -m harness judge-check --judge hf_pairwise:model=my-judge --data labelled.jsonl --json

A file holds prompt, response_1, response_2 and label (1, 2, or 0 for a tie), or prompt, chosen and rejected.
The result is kept below results/judge-checks/, and leaderboards that the same judge made point to it.
exit status: 0 done, 1 a judgement is missing (run it again), 2 something must be changed first"""


def add_command(commands) -> None:
    """Add the command to the parsers of the command line."""
    command = commands.add_parser(
        "judge-check",
        help="Hold a judge against human labels.",
        description="Print a judge's accuracy against labels with its interval, Cohen's kappa, flips and length bias.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--judge", required=True, metavar="JUDGE", help="KIND, KIND:option=value,... or a YAML file")
    command.add_argument("--data", required=True, metavar="DATA", help="llmbar, pandalm, hh, tldr, or a file")
    command.add_argument(
        "--task", default="", help="whose template and preferences the judge uses (default: hh, or the data's own)"
    )
    command.add_argument("--limit", type=int, metavar="N", help="check the first N comparisons only")
    command.add_argument("--results", default="", metavar="FOLDER", help="the folder of all results (default: results)")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Check a judge, keep and print what was found; raises `UserError` for what could not work."""
    from harness.core.errors import UserError
    from harness.core.store import write_json
    from harness.evaluation.labelled import load_labelled
    from harness.reporting.judge_checks import check_file
    from harness.run.judging import standalone_judge

    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit must be at least 1, got {options.limit}")
    labelled = load_labelled(options.data, options.limit)
    task = options.task or (options.data if options.data in ("hh", "tldr") else "hh")
    made = standalone_judge(options.judge, task, f"judge-check {options.data}", options.results)
    judgements = made.judge.judge([row.comparison for row in labelled.rows], lambda done: None)
    found = {
        "judge": made.judge.id,
        "data": options.data,
        "labels": labelled.labels,
        "limit": options.limit,
        "dropped": labelled.dropped,
        "options": made.choice.kind.identity(made.choice.options),
        **measures(labelled.rows, judgements),
    }
    file = check_file(made.results, made.judge.id, options.data)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, found)
    print(json.dumps(found, indent=2) if options.json else readable(found, str(file)))
    return 0 if found["coverage"] == 1 else 1


def measures(rows: Sequence, judgements: Sequence) -> dict[str, object]:
    """Return what a judge's judgements of labelled comparisons (`Labelled`) say of it; None where nothing does.

    - `accuracy` with `low` and `high` (Wilson, 95 %) over the `n` comparisons with a preference on both sides of the
      table: those that people do not call a tie and the judge gave a verdict on; a tie of the judge is half right.
    - `kappa`: Cohen's, over first, second and tie, on all comparisons with a verdict.
    - `flip_rate` and `first_rate`: how often the order decided, and how much of its verdicts the first shown got.
    - `longer` and `labels_longer`: the share of verdicts, and of labels, for the longer response (ties and equal
      lengths left out).
    - `usd_per_1000`: the price of 1,000 comparisons, from what the answers used; 0 for a judge that runs here, None
      where no price is known.
    """
    from harness.evaluation.base import COUNTED
    from harness.evaluation.labelled import TIE
    from harness.evaluation.statistics.intervals import flip_rate

    pairs = [(row, judgement) for row, judgement in zip(rows, judgements, strict=True) if judgement.status in COUNTED]
    preferred = [(row, judgement) for row, judgement in pairs if row.label != TIE]
    subsets = sorted({row.subset for row in rows})
    by_subset = {name: _accuracy([pair for pair in preferred if pair[0].subset == name]) for name in subsets}
    first = [judgement.first for _, judgement in pairs if judgement.first is not None]
    return {
        **_accuracy(preferred),
        "kappa": _kappa([(row.label, _verdict(judgement)) for row, judgement in pairs]),
        "coverage": len(pairs) / len(rows),
        "missing": {status: n for status, n in _counts(judgements).items() if status not in COUNTED},
        "flip_rate": _or_none(flip_rate(judgement.flipped for _, judgement in pairs)),
        "first_rate": sum(first) / len(first) if first else None,
        "longer": _longer([(row, _verdict(judgement)) for row, judgement in pairs]),
        "labels_longer": _longer([(row, row.label) for row, _ in pairs]),
        "usd_per_1000": _price([judgement for _, judgement in pairs]),
        "subsets": by_subset if len(subsets) > 1 else {},
    }


def readable(found: dict, file: str) -> str:
    """Return what was found in lines for a person."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    def accuracy(row: dict) -> str:
        interval = f" [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" if row["n"] else ""
        return f"{percent(row['accuracy'])}{interval} of {row['n']}"

    price = found["usd_per_1000"]
    lines = {
        "judge": found["judge"],
        "data": f"{found['data']}, {found['labels']}"
        + "".join(f"; {n} dropped: {why}" for why, n in found["dropped"].items()),
        "accuracy": f"{accuracy(found)} (95 % interval; a tie is half right)",
        **{f"  {name}": accuracy(row) for name, row in found["subsets"].items()},
        "Cohen's kappa": "-" if found["kappa"] is None else f"{found['kappa']:.3f}",
        "coverage": percent(found["coverage"]) + "".join(f"; {n} {status}" for status, n in found["missing"].items()),
        "flip rate": percent(found["flip_rate"]),
        "first shown": percent(found["first_rate"]) if found["first_rate"] is not None else "- (no order)",
        "longer answer": f"{percent(found['longer'])} (the labels: {percent(found['labels_longer'])})",
        "USD per 1,000": "no known price" if price is None else f"{price:.2f}",
        "kept in": file,
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def _accuracy(pairs: Sequence) -> dict[str, float | int | None]:
    from harness.evaluation.labelled import TIE
    from harness.evaluation.statistics.intervals import wilson_interval

    verdicts = [(row.label, _verdict(judgement)) for row, judgement in pairs]
    right = sum(0.5 if verdict == TIE else float(verdict == label) for label, verdict in verdicts)
    low, high = map(_or_none, wilson_interval(right, len(pairs)))
    return {"accuracy": right / len(pairs) if pairs else None, "low": low, "high": high, "n": len(pairs)}


def _verdict(judgement) -> int:
    from harness.evaluation.labelled import FIRST, SECOND, TIE

    return TIE if judgement.preference == 0.5 else FIRST if judgement.preference > 0.5 else SECOND


def _kappa(pairs: Sequence[tuple[int, int]]) -> float | None:
    """Agreement beyond chance: (observed - expected) / (1 - expected), expected from the two's own frequencies."""
    if not pairs:
        return None
    n = len(pairs)
    observed = sum(a == b for a, b in pairs) / n
    expected = sum(
        sum(a == c for a, _ in pairs) * sum(b == c for _, b in pairs) for c in {c for pair in pairs for c in pair}
    ) / (n * n)
    return None if expected == 1 else (observed - expected) / (1 - expected)


def _longer(pairs: Sequence) -> float | None:
    from harness.evaluation.labelled import FIRST, TIE

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
    from collections import Counter

    return dict(Counter(judgement.status for judgement in judgements))


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
