"""The stage `sft`: trains the policy that every cell of a task starts from, which is also their reference."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from harness.backbones.language_model.policy import TENSORS, load_policy
from harness.backbones.language_model.sft import train_sft
from harness.core.hashing import hash_value
from harness.core.record_files import write_record
from harness.core.store import Artifact, partial_folder
from harness.experiment.cells import Cell
from harness.run.sources import training_source
from harness.run.stages.base import Stage, Target, for_the_cell
from harness.run.worker import Worker
from harness.training.base import Job, Progress
from harness.training.checkpoint import Checkpoints
from harness.training.processes import build_together


def sft(worker: Worker, task: str, progress: Progress) -> Artifact:
    """Return a task's SFT policy, trained on first use."""
    config, inputs = worker.experiment.sft, worker.plan.starts[task]
    path = worker.sft_folder(task)

    def build(folder: Path) -> None:
        write_record(folder, worker.environment())
        split = worker.plan.tasks[task].prepared.splits["train"]
        completions = [e.chosen for e in split.examples if e.chosen is not None]
        policy = worker.to_train(load_policy(worker.plan.model, worker.experiment.model, seed=config.seed))
        source = training_source(worker, split.sequences, progress)
        source = dataclasses.replace(source, budget=config.micro_batch_tokens)
        checkpoints = Checkpoints(partial_folder(path), inputs, config.checkpoint_every)
        train_sft(policy, completions, source, config, Job(worker.accelerator, folder, progress, checkpoints))

    return build_together(worker.accelerator, path, "sft", inputs, build, _has_tensors)


def _has_tensors(trained: Artifact) -> bool:
    return TENSORS in trained.manifest["files"]


def reference_hash(worker: Worker, task: str, progress: Progress) -> str:
    """Return the content hash of a task's reference: the base model with the SFT policy's tensors."""
    return hash_value([worker.plan.model_hash, sft(worker, task, progress).manifest["files"][TENSORS]])


def make(worker: Worker, cell: Cell, target: Target, progress: Progress) -> Artifact:
    """Run the stage for a cell."""
    return sft(worker, cell.task, progress)


STAGE = Stage("sft", for_the_cell, make, shared=True)
