"""The mean and the number of the log-ratios of all responses so far."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from harness.training.batch import EffectiveBatch
from harness.training.forward import Training
from harness.training.supply import EachStep, Split
from losses.batch import History, PreferenceBatch


def history(split: Split, plan: Iterable[EffectiveBatch]) -> EachStep:
    """Return a supplier of the history of all steps before a batch, shared by training and evaluation on dev."""
    return _RunningMean()


def _so_far(training: Training) -> History:
    return History(*training.kept.get("history", (0.0, 0)))


class _RunningMean(EachStep):
    def before(self, training: Training, batch: EffectiveBatch) -> History:
        return _so_far(training)

    def after(self, training: Training, view: PreferenceBatch) -> None:
        parts = [view.chosen.logratio, view.rejected.logratio]
        if view.others is not None:
            parts.append(view.others.logratio[view.others.mask])
        ratios = torch.cat(parts).cpu().double()
        before = _so_far(training)
        total = before.count + len(ratios)
        mean = before.mean + (ratios.mean().item() - before.mean) * len(ratios) / total
        training.kept["history"] = [mean, total]
