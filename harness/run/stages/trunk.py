"""The stage `frozen layers`: their activations for the training data, where the last layers alone are trained."""

from __future__ import annotations

from collections.abc import Sequence

from harness.backbones.language_model.scoring import BatchSource
from harness.core.store import Artifact
from harness.experiment.cells import Cell
from harness.experiment.plan import Plan
from harness.run.sources import training_source
from harness.run.stages.base import Stage, Target, for_each_split_of_training
from harness.run.stages.completions import preferences
from harness.run.worker import Worker
from harness.training.base import Progress


def preference_source(worker: Worker, task: str, split: str, progress: Progress) -> BatchSource:
    """Return a source of batches of the preferences of a split."""

    def read() -> BatchSource:
        return training_source(worker, preferences(worker, task, progress)[split].sequences, progress)

    return worker.memory.get("source", (task, split), read)


def targets(plan: Plan, cell: Cell, splits: Sequence[str]) -> list[Target]:
    """Return the splits of the training data, where frozen layers have activations that serve every cell."""
    return for_each_split_of_training(plan, cell, splits) if plan.trunk_bytes else []


def make(worker: Worker, cell: Cell, target: Target, progress: Progress) -> Artifact | None:
    """Carry the stage out for a split."""
    return preference_source(worker, cell.task, target.split, progress).trunk


STAGE = Stage("frozen layers", targets, make, shared=True)
