"""How often a judge agrees with labels: the same measure for every judge."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.records import COUNTED, Agreement
from harness.evaluation.base import Comparison, Judge
from harness.evaluation.statistics.intervals import wilson_interval
from harness.tasks.base import Preference


def comparisons_of_pairs(pairs: Sequence[Preference]) -> list[Comparison]:
    """Return labelled pairs as comparisons; the label is `chosen_first` of the index.

    Every other pair is swapped, so that a judge that always prefers one side is right half the time.
    """
    sides = [(p.chosen, p.rejected) if chosen_first(i) else (p.rejected, p.chosen) for i, p in enumerate(pairs)]
    return [Comparison(str(i), pair.prompt, *side) for i, (pair, side) in enumerate(zip(pairs, sides, strict=True))]


def chosen_first(index: int) -> bool:
    """Whether the chosen response of this pair stands in the place of the policy's."""
    return index % 2 == 0


def measure_agreement(judge: Judge, pairs: Sequence[Preference], labels: str) -> Agreement | None:
    """Return the accuracy on labelled pairs: a verdict for the chosen counts 1, a tie half, a failure not at all.

    None where there is no pair, or no judgement of one.
    """
    judged = [j for j in judge.judge(comparisons_of_pairs(pairs), lambda done: None) if j.status in COUNTED]
    if not judged:
        return None
    right = sum(map(correct, judged))
    return Agreement(right / len(judged), *wilson_interval(right, len(judged)), len(judged), labels)


def correct(judgement) -> float:
    """Return 1 where the preference of a judgement on `comparisons_of_pairs` pairs is for the chosen response, 0.5 for a tie."""
    for_chosen = judgement.preference if chosen_first(int(judgement.id)) else 1 - judgement.preference
    return 0.5 if for_chosen == 0.5 else float(for_chosen > 0.5)
