"""The stage `train`: trains a cell's policy from the SFT policy with the cell's loss. The SFT row trains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from harness.backbones.language_model.needs import SUPPLIERS, LanguageModelSplit
from harness.backbones.language_model.policy import TENSORS, load_policy
from harness.backbones.language_model.self_refinement import augmented_prompt
from harness.core.errors import UserError
from harness.core.prompt import Prompt, prompt_text
from harness.core.record_files import read_mapping, write_record
from harness.core.records import SFT, START, TRAIN, TrainSummary
from harness.core.store import Artifact, find_artifact, partial_folder, write_json
from harness.experiment.cells import Cell
from harness.run.stages.base import Stage, Target, for_the_cell
from harness.run.stages.completions import preferences
from harness.run.stages.reference import reference, reference_of, second_reference
from harness.run.stages.sft import sft
from harness.run.stages.trunk import preference_source
from harness.run.worker import Worker
from harness.training.base import Job, Progress
from harness.training.batch import Example
from harness.training.checkpoint import Checkpoints
from harness.training.preference import train_preference
from harness.training.processes import build_together


def is_trained(worker: Worker, cell: Cell) -> bool:
    """Whether a cell's policy is trained, and from the SFT policy that is in the store, if one is there."""
    trained = find_artifact(worker.plan.folder(cell) / TRAIN, cell.inputs)
    start = find_artifact(worker.sft_folder(cell.task))
    return trained is not None and (start is None or _is_from(start, trained))


def train(worker: Worker, cell: Cell, progress: Progress) -> Artifact:
    """Return a cell's trained policy, trained on first use."""
    plan, config = worker.plan, worker.experiment.train
    path = plan.folder(cell) / TRAIN
    if is_trained(worker, cell):
        return find_artifact(path)
    start = sft(worker, cell.task, progress)

    def build(folder: Path) -> None:
        worker.drop_policies()
        write_json(folder / START, {TENSORS: start.manifest["files"][TENSORS]})
        write_record(folder, worker.environment())
        if cell.loss == SFT:
            write_record(folder, TrainSummary())
            return
        policy = load_policy(plan.model, worker.experiment.model, [start.path], seed=cell.seed)
        loss = plan.resolved.losses[cell.loss]
        if "token_values" in loss.needs:
            policy.add_value_head()
        inputs = {**cell.inputs, "weights": start.manifest["files"][TENSORS]}
        checkpoints = Checkpoints(partial_folder(path), inputs, config.checkpoint_every)
        train_preference(
            worker.to_train(policy),
            loss,
            cell.settings,
            {split: training_split(worker, cell.task, split, progress) for split in ("train", "dev")},
            config,
            cell.seed,
            Job(worker.accelerator, folder, progress, checkpoints),
        )

    accelerator, accept = worker.accelerator, partial(_is_from, start)
    return build_together(accelerator, path, TRAIN, cell.inputs, build, accept)


def _is_from(start: Artifact, trained: Artifact) -> bool:
    """Whether a policy was trained from this SFT policy: trained again elsewhere, that may have other weights."""
    try:
        return read_mapping(trained.path / START).get(TENSORS) == start.manifest["files"].get(TENSORS)
    except UserError:  # another version wrote it
        return False


def training_split(worker: Worker, task: str, split: str, progress: Progress) -> LanguageModelSplit:
    """Return a split of a task's preferences with everything that a loss may need."""
    plan, splits = worker.plan, preferences(worker, task, progress)

    def embed(examples: Sequence[Example]) -> np.ndarray:
        return plan.encoder.stored([prompt_text(example.prompt) for example in examples])

    def augment(prompt: Prompt) -> tuple[int, ...]:
        return augmented_prompt(prompt, plan.tasks[task].task, worker.experiment.tasks[task], plan.renderer)

    return LanguageModelSplit(
        splits[split].examples,
        splits[split].paired,
        splits["train"].examples,
        preference_source(worker, task, split, progress),
        reference(worker, task, split, progress),
        lambda source: reference_of(worker, task, source, progress),
        embed,
        SUPPLIERS,
        lambda: second_reference(worker, task, split, progress),
        augment,
    )


def make(worker: Worker, cell: Cell, target: Target, progress: Progress) -> Artifact:
    """Run the stage for a cell."""
    return train(worker, cell, progress)


STAGE = Stage(TRAIN, for_the_cell, make)
