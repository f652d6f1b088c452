"""A judge's agreement with labels, measured in the same way for every judge."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.records import COUNTED, Agreement, Judgement
from harness.evaluation.base import Comparison, Judge
from harness.evaluation.statistics.intervals import wilson_interval
from harness.tasks.base import Preference


def comparisons_of_pairs(pairs: Sequence[Preference]) -> list[Comparison]:
    """Return labelled pairs as comparisons; `chosen_first(index)` gives the label.

    Every other pair is swapped, so that a judge that always prefers one side is right half the time.
    """
    sides = [(p.chosen, p.rejected) if chosen_first(i) else (p.rejected, p.chosen) for i, p in enumerate(pairs)]
    return [Comparison(str(i), pair.prompt, *side) for i, (pair, side) in enumerate(zip(pairs, sides, strict=True))]


def chosen_first(index: int) -> bool:
    """Return whether the chosen response of the pair with this index takes the place of the policy's response."""
    return index % 2 == 0


def measure_agreement(judge: Judge, pairs: Sequence[Preference], labels: str) -> Agreement | None:
    """Return the judge's accuracy on labelled pairs, with a Wilson interval; None if no pair was judged.

    A verdict for the chosen response counts 1 and a tie 0.5; failures are left out.
    """
    judged = [j for j in judge.judge(comparisons_of_pairs(pairs), lambda done: None) if j.status in COUNTED]
    if not judged:
        return None
    right = sum(map(correct, judged))
    return Agreement(right / len(judged), *wilson_interval(right, len(judged)), len(judged), labels)


def correct(judgement: Judgement) -> float:
    """Return 1 if a judgement on `comparisons_of_pairs` prefers the chosen response, 0.5 for a tie, else 0."""
    for_chosen = judgement.preference if chosen_first(int(judgement.id)) else 1 - judgement.preference
    return 0.5 if for_chosen == 0.5 else float(for_chosen > 0.5)
