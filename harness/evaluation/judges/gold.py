"""A programmatic reward as the judge: with a known true reward, the response with the higher reward is better.

A controlled setting (2305.18290, section 6.1): the judge makes no errors, is independent of the order, and is free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from harness.core.dials import dial
from harness.core.errors import one_line
from harness.core.prompt import readable_prompt
from harness.core.records import Agreement, Judgement
from harness.core.secrets import masked
from harness.evaluation.agreement import measure_agreement
from harness.evaluation.base import Comparison, JudgeContext, register_judge
from harness.tasks.rewards.base import Reward, find_reward


@dataclass
class GoldOptions:
    """The settings under `judge:` in an experiment file."""

    reward: str  # a registered reward, or a module:function that maps prompt and response (texts) to a number
    margin: float = dial(0.0, at_least=0)  # a reward difference of at most this is a tie


def check(options: GoldOptions) -> None:
    """Raise `UserError` for an unknown reward."""
    find_reward(options.reward)


@register_judge("gold", options=GoldOptions, check=check)
def make(options: GoldOptions, context: JudgeContext) -> GoldJudge:
    """Return the judge."""
    return GoldJudge(options, find_reward(options.reward), context)


class GoldJudge:
    """See the module. `agreement`, on all held-out pairs, measures how well their labels follow the reward."""

    def __init__(self, options: GoldOptions, reward: Reward, context: JudgeContext):
        self.options = options
        self.context = context
        self._reward = reward
        self.id = f"gold:{reward.name}@{reward.version()[:8]}"

    @cached_property
    def agreement(self) -> Agreement | None:
        """The accuracy on held-out labelled pairs; None if there are none."""
        return measure_agreement(self, [pair for pair in self.context.held_out if pair.paired], self.context.labels)

    def judge(self, comparisons: Sequence[Comparison], progress: Callable[[int], None]) -> list[Judgement]:
        """Return one judgement per comparison, in order; it is "failed" if the reward raises or is NaN."""
        judgements = []
        for comparison in comparisons:
            judgements.append(self._judgement(comparison))
            progress(1)
        return judgements

    def _judgement(self, comparison: Comparison) -> Judgement:
        prompt = readable_prompt(comparison.prompt)
        try:
            difference = self._reward(prompt, comparison.response) - self._reward(prompt, comparison.baseline)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a user's function can raise anything, sys.exit's error included
            reason = one_line(masked(f"{type(error).__name__}: {error}"))[:200]
            return Judgement(comparison.id, "failed", None, detail=reason)
        if math.isnan(difference):
            return Judgement(comparison.id, "failed", None, detail="the rewards do not compare")
        if abs(difference) <= self.options.margin:
            return Judgement(comparison.id, "tie", 0.5)
        return Judgement(comparison.id, "ok", float(difference > 0))
