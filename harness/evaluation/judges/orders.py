"""Combines the verdicts on a comparison, in one or both orders of the responses, into a judgement."""

from __future__ import annotations

from harness.core.hashing import hash_value
from harness.core.records import Judgement, Usage
from harness.evaluation.base import Comparison


def identical(comparison: Comparison) -> Judgement | None:
    """Return a tie if both responses are identical, so that no judge has to be asked; else None."""
    if comparison.response != comparison.baseline:
        return None
    return Judgement(comparison.id, "tie", 0.5, None, "identical responses: not asked")


def policy_first(comparison: Comparison) -> bool:
    """Return whether the policy's response is shown first if only one order is asked; by hash, half of the time."""
    return int(hash_value([comparison.id, comparison.response, comparison.baseline])[0], 16) % 2 == 0


def one_order(
    id: str, first: float, policy_is_first: bool, *, graded: float | None = None, usage: Usage | None = None
) -> Judgement:
    """Return the judgement from one verdict: `first` is the judge's preference for the first response, in [0, 1]."""
    preference = first if policy_is_first else 1 - first
    return Judgement(id, "tie" if preference == 0.5 else "ok", preference, graded=graded, usage=usage)


def both_orders(
    id: str,
    policy_shown_first: float,
    baseline_shown_first: float,
    *,
    graded: float | None = None,
    usage: Usage | None = None,
) -> Judgement:
    """Return the judgement from two verdicts, each the judge's preference for the response shown first, in [0, 1].

    Verdicts that agree give their mean as the preference. Opposite ones show that the order decided, and give a tie.
    """
    for_policy = (policy_shown_first, 1 - baseline_shown_first)
    sides = [_side(preference) for preference in for_policy]
    first = (_side(policy_shown_first) + _side(baseline_shown_first) + 2) / 4
    if sides[0] * sides[1] < 0:
        return Judgement(id, "tie", 0.5, True, first=first, graded=graded, usage=usage)
    preference = sum(for_policy) / 2
    status = "tie" if preference == 0.5 else "ok"
    return Judgement(id, status, preference, False, first=first, graded=graded, usage=usage)


def _side(sure: float) -> int:
    return (sure > 0.5) - (sure < 0.5)
