"""The stage `frozen layers`: stores their activations for the training data if only the last layers are trained."""

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
    """Return a source of batches of one split of a task's preferences."""

    def read() -> BatchSource:
        return training_source(worker, preferences(worker, task, progress)[split].sequences, progress)

    return worker.memory.get("source", (task, split), read)


def targets(plan: Plan, cell: Cell, splits: Sequence[str]) -> list[Target]:
    """Return one target for each split of the training data if there are frozen layers; all cells share theirs."""
    return for_each_split_of_training(plan, cell, splits) if plan.trunk_bytes else []


def make(worker: Worker, cell: Cell, target: Target, progress: Progress) -> Artifact | None:
    """Run the stage for a split."""
    return preference_source(worker, cell.task, target.split, progress).trunk


STAGE = Stage("frozen layers", targets, make, shared=True)
