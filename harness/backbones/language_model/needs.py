"""The needs that a language model supplies to losses in addition to log-probs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from harness.core.prompt import Prompt
from harness.training.base import LogProbs
from harness.training.batch import EffectiveBatch
from harness.training.forward import Training
from harness.training.needs.suppliers import SUPPLIERS as SUPPLIED_BY_ALL
from harness.training.supply import Column, EachStep, Split, Supplier


@dataclass(frozen=True)
class LanguageModelSplit(Split):
    """A split of token data.

    `second_reference` returns the log-probs of its sequences under another model, `augment` a prompt's ids with an
    evaluator's sentence.
    """

    second_reference: Callable[[], LogProbs]
    augment: Callable[[Prompt], tuple[int, ...]]


def _second_reference(split: LanguageModelSplit, plan: Iterable[EffectiveBatch]) -> Column:
    """Return the summed log-prob of each response under the second reference."""
    sums = split.second_reference().sums(range(len(split.source))).numpy()
    sides = ([getattr(e, side) for e in split.examples] for side in ("chosen", "rejected"))
    return Column(*(np.array([0 if i is None else sums[i] for i in side], np.float32) for side in sides))


class _Confidence(EachStep):
    """The policy's mean over tokens of log pi(y_t) - log sum_v pi(v)^2 (WPO's)."""

    def __init__(self, split: LanguageModelSplit, plan: Iterable[EffectiveBatch]):
        self.source = split.source

    def before(self, training: Training, batch: EffectiveBatch) -> Tensor:
        confidences = partial(self.source.confidences, training.policy)
        return training.of_rows(self.source, batch.rows, confidences, batch.groups())


class _Augmented(EachStep):
    """The policy's log-prob of each response under a prompt that asks for the best one (Sr-DPO's)."""

    def __init__(self, split: LanguageModelSplit, plan: Iterable[EffectiveBatch]):
        pairs = [(split.augment(e.prompt), i) for e in split.examples for i in (e.chosen, e.rejected) if i is not None]
        prompts, rows = zip(*pairs, strict=True)
        self.source, places = split.source.under(prompts, rows)
        self._row_of = dict(zip(rows, places, strict=True))

    def before(self, training: Training, batch: EffectiveBatch) -> Tensor:
        rows = [self._row_of[row] for row in batch.chosen + batch.rejected]
        return training.of_rows(self.source, rows, partial(self.source.outputs, training.policy))


SUPPLIERS = {
    **SUPPLIED_BY_ALL,
    "second_reference": Supplier(_second_reference, lambda inputs: inputs.second_reference),
    "confidence": Supplier(_Confidence),
    "augmented": Supplier(_Augmented),
    "token_values": Supplier(),
}
