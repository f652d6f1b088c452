"""Two verdicts on one comparison, in both orders of the responses, put together."""

from __future__ import annotations

from harness.core.hashing import hash_value
from harness.core.records import Judgement, Usage
from harness.evaluation.base import Comparison


def identical(comparison: Comparison) -> Judgement | None:
    """Return the tie between two responses that are the same, which no judge need be asked about; else None."""
    if comparison.response != comparison.baseline:
        return None
    return Judgement(comparison.id, "tie", 0.5, None, "identical responses: not asked")


def policy_first(comparison: Comparison) -> bool:
    """Whether the policy's response stands first where one order alone is asked: by content, half of the time."""
    return int(hash_value([comparison.id, comparison.response, comparison.baseline])[0], 16) % 2 == 0


def one_order(id: str, first: float, policy_is_first: bool, usage: Usage | None = None) -> Judgement:
    """Return the judgement of one verdict: how sure the judge is, in [0, 1], that the response shown first is better."""
    preference = first if policy_is_first else 1 - first
    return Judgement(id, "tie" if preference == 0.5 else "ok", preference, usage=usage)


def both_orders(
    id: str, policy_shown_first: float, baseline_shown_first: float, usage: Usage | None = None
) -> Judgement:
    """Return the judgement of two verdicts, each how sure the judge is that the response shown first is better.

    Equal verdicts are a preference, the mean of the two. Opposite ones show that the order decided: a tie.
    """
    for_policy = (policy_shown_first, 1 - baseline_shown_first)
    sides = [_side(preference) for preference in for_policy]
    first = (_side(policy_shown_first) + _side(baseline_shown_first) + 2) / 4
    if sides[0] * sides[1] < 0:
        return Judgement(id, "tie", 0.5, True, first=first, usage=usage)
    preference = sum(for_policy) / 2
    return Judgement(id, "tie" if preference == 0.5 else "ok", preference, False, first=first, usage=usage)


def _side(sure: float) -> int:
    return (sure > 0.5) - (sure < 0.5)
