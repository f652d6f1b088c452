"""Responses scored under prompts that they do not answer, from which KTO estimates a KL divergence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from harness.training.batch import EffectiveBatch
from harness.training.forward import Training
from harness.training.supply import EachStep, Split
from losses.batch import Side


def kl_pairs(split: Split, plan: Iterable[EffectiveBatch]) -> EachStep:
    """Return a supplier that scores each batch's mismatched pairs; the reference scores the whole plan's at once."""
    return _Mismatched(split, [pair for batch in plan for pair in batch.mismatched()])


class _Mismatched(EachStep):
    def __init__(self, split: Split, pairs: Sequence[tuple[int, int]]):
        self.source, rows = split.source.crossed(pairs)
        self.reference = split.score(self.source)
        self._row_of = dict(zip(pairs, rows, strict=True))

    def before(self, training: Training, batch: EffectiveBatch) -> Side:
        rows = [self._row_of[pair] for pair in batch.mismatched()]
        logps = training.of_rows(self.source, rows, partial(self.source.outputs, training.policy))
        return Side(logps, self.reference.sums(rows).to(logps.device), name="mismatched")
