"""What a language model supplies to losses beside log-probs, by need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np
from torch import Tensor

from harness.core.prompt import Prompt
from harness.training.base import LogProbs
from harness.training.batch import EffectiveBatch
from harness.training.forward import Training
from harness.training.needs.history import history
from harness.training.needs.kl_pairs import kl_pairs
from harness.training.needs.prompts import density_ratios, prompt_embeddings
from harness.training.needs.scores import scores
from harness.training.supply import Column, Computed, EachStep, Split


def supplies(
    augment: Callable[[Prompt], tuple[int, ...]], second_reference: Callable[[], LogProbs]
) -> Mapping[str, Computed]:
    """Return how each need is computed for a split.

    `augment` gives a prompt's ids with an evaluator's sentence, `second_reference` the log-probs of the split's
    sequences under another model.
    """
    return {
        "scores": scores,
        "prompt_embeddings": prompt_embeddings,
        "density_ratios": density_ratios,
        "second_reference": partial(_under_second_reference, second_reference),
        "confidence": lambda split, plan: _Confidence(split),
        "augmented": lambda split, plan: _Augmented(split, augment),
        "kl_pairs": kl_pairs,
        "history": history,
    }


def _under_second_reference(
    second_reference: Callable[[], LogProbs], split: Split, plan: Iterable[EffectiveBatch]
) -> Column:
    """Return the summed log-prob of each response under the second reference."""
    sums = second_reference().sums(range(len(split.source))).numpy()
    chosen, rejected = ([getattr(e, side) for e in split.examples] for side in ("chosen", "rejected"))
    return Column(*(np.array([0 if i is None else sums[i] for i in side], np.float32) for side in (chosen, rejected)))


class _Confidence(EachStep):
    """The policy's mean over tokens of log pi(y_t) - log sum_v pi(v)^2 (WPO's)."""

    def __init__(self, split: Split):
        self.source = split.source

    def before(self, training: Training, batch: EffectiveBatch) -> Tensor:
        confidences = partial(self.source.confidences, training.policy)
        return training.of_rows(self.source, batch.rows, confidences, batch.groups())


class _Augmented(EachStep):
    """The policy's log-prob of each response where the prompt asks for the best one (Sr-DPO's)."""

    def __init__(self, split: Split, augment: Callable[[Prompt], tuple[int, ...]]):
        pairs = [(augment(e.prompt), i) for e in split.examples for i in (e.chosen, e.rejected) if i is not None]
        prompts, rows = zip(*pairs, strict=True)
        self.source, places = split.source.under(prompts, rows)
        self._row_of = dict(zip(rows, places, strict=True))

    def before(self, training: Training, batch: EffectiveBatch) -> Tensor:
        rows = [self._row_of[row] for row in batch.chosen + batch.rejected]
        return training.of_rows(self.source, rows, partial(self.source.outputs, training.policy))
