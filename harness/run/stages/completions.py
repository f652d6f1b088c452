"""The stage `completions`: samples preferences from the SFT policy of a task that has none of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.backbones.language_model.preferences import draw, read_labelled
from harness.backbones.language_model.tokens import TokenSplit
from harness.core.store import Artifact
from harness.experiment.cells import Cell, drawing_inputs
from harness.experiment.plan import Plan
from harness.run.stages.base import Stage, Target
from harness.run.stages.sft import sft
from harness.run.worker import Worker
from harness.training.base import Progress


def preferences(worker: Worker, task: str, progress: Progress) -> dict[str, TokenSplit]:
    """Return the preferences that a task's policies are trained on, by split."""
    planned = worker.plan.tasks[task]
    if planned.generation is None:
        return planned.prepared.splits

    def read() -> dict[str, TokenSplit]:
        drawn = completions(worker, task, progress).path
        splits = planned.prepared.splits
        return {name: read_labelled(drawn, name, split, planned.generation.options) for name, split in splits.items()}

    return worker.memory.get("preferences", task, read)


def completions(worker: Worker, task: str, progress: Progress) -> Artifact:
    """Return the completions that a generating task samples from its SFT policy, with their rewards."""
    planned = worker.plan.tasks[task]
    sft(worker, task, progress)

    def build(folder: Path) -> None:
        decoding = planned.generation.decoding(worker.experiment.sample.batch_size)
        sampler = worker.sampler(decoding, planned.generation.options.seed)
        draw(worker.reference_policy(task), sampler, planned.prepared.splits, planned.generation, folder, progress)

    return worker.store.artifact("completions", drawing_inputs(planned, worker.plan.starts[task]), build)


def targets(plan: Plan, cell: Cell, splits: Sequence[str]) -> list[Target]:
    """Return one target if the cell's task generates its preferences, otherwise none."""
    return [Target()] if plan.tasks[cell.task].generation else []


def make(worker: Worker, cell: Cell, target: Target, progress: Progress) -> Artifact:
    """Run the stage for a cell."""
    return completions(worker, cell.task, progress)


STAGE = Stage("completions", targets, make, shared=True)
