"""From an experiment to its cells: data, model and the keys of all that is to be computed. Nothing runs here.

All that a user can get wrong is found while planning, before anything expensive starts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.assets import model_folder, weights_hash
from harness.config import ExperimentConfig, TaskConfig
from harness.encoder import MAX_PIECES, Encoder
from harness.errors import UserError
from harness.hashing import hash_source, hash_value
from harness.plugins import load_plugins
from harness.resolve import SFT, Resolved, resolve
from harness.store import Store, key_of
from harness.tasks import Task
from harness.training.data import PreparedTask, prepare_task, prompt_text
from harness.training.policy import load_tokenizer, model_settings
from harness.training.render import Renderer
from losses import Loss, PreferenceBatch
from losses.registry import Registry, origin_of

FORMAT = 1  # raised when training changes what the same experiment computes


@dataclass(frozen=True, eq=False)  # told apart by identity: a plan makes each cell once
class Cell:
    """One policy: a task, a loss with its settings, a seed. The SFT policy is the cell without a loss."""

    key: str
    task: str
    loss: str
    settings: Mapping[str, object]
    seed: int
    evaluated_on: tuple[str, ...]
    inputs: Mapping[str, object]

    @property
    def label(self) -> str:
        """What the cell is, in words for a person."""
        settings = " ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.settings.items())
        return " ".join(part for part in (self.task, self.loss, settings, f"seed={self.seed}") if part)


@dataclass(frozen=True)
class PlannedTask:
    """A task of the experiment with its data, tokenised; `hash` is that of the data as they were read."""

    name: str
    task: Task
    prepared: PreparedTask
    hash: str


@dataclass(frozen=True)
class Plan:
    """Everything that a run needs to know before it begins."""

    experiment: ExperimentConfig
    resolved: Resolved
    model: Path
    model_hash: str
    renderer: Renderer
    encoder: Encoder
    tasks: dict[str, PlannedTask]
    starts: dict[str, dict]  # for each training task what determines its SFT policy: the key of that artifact
    cells: list[Cell]
    store: Store

    @property
    def decoding(self) -> dict:
        """What determines a sample besides policy, prompt and seed; how many are drawn at once does not."""
        return {key: value for key, value in asdict(self.experiment.sample).items() if key != "batch_size"}

    def description(self) -> dict:
        """Return the plan as reporting reads it (`plan.json`)."""
        return {
            "experiment": self.experiment.name,
            "baselines": {name: planned.task.baseline for name, planned in self.tasks.items()},
            "decoding": self.decoding,
            "cells": [self.describe(cell) for cell in self.cells],
        }

    def describe(self, cell: Cell) -> dict:
        """Return one cell as reporting reads it (`cell.json`)."""
        loss = self.resolved.losses.get(cell.loss)
        return {
            "key": cell.key,
            "trained_on": cell.task,
            "loss": cell.loss,
            "settings": dict(cell.settings),
            "seed": cell.seed,
            "reduction": loss.reduction if loss else "",
            "paper": loss.paper if loss else "",
            "data": loss.data if loss else "",
            "evaluated_on": list(cell.evaluated_on),
        }


def make_plan(experiment: ExperimentConfig) -> Plan:
    """Check an experiment against what is there, load its data, and expand it into cells.

    Raises `UserError` or `RegistryError` for an unknown name or setting, data or a model that cannot be read,
    lengths that the model cannot take, a judge that could not work, or a results folder that cannot be written.
    """
    load_plugins(experiment.plugins)
    resolved = resolve(experiment)
    resolved.judge.check(resolved.judge_options)
    _check_writable(experiment.folder)
    store = Store(experiment.store)
    folder = model_folder(experiment.model.name, experiment.model.revision)
    _check_lengths(experiment, model_settings(folder, experiment.model))
    renderer = Renderer(load_tokenizer(folder, experiment.model))
    model_hash = weights_hash(folder)
    encoder = Encoder(experiment.encoder, store)
    planned = {name: _load(name, task, experiment.tasks[name], renderer) for name, task in resolved.tasks.items()}
    _check_data(resolved.losses, planned)
    starts = {name: _start_inputs(experiment, model_hash, planned[name]) for name in resolved.evaluated_on}
    cells = [
        _cell(experiment, planned[name], starts[name], resolved.losses.get(loss), settings, seed, evaluated_on, encoder)
        for name, evaluated_on in resolved.evaluated_on.items()
        for seed in experiment.seeds
        for loss, settings in [(SFT, {}), *resolved.points]
    ]
    return Plan(experiment, resolved, folder, model_hash, renderer, encoder, planned, starts, cells, store)


def _check_writable(folder: Path) -> None:
    """Try to write where the results will be, and leave nothing there."""
    place = folder
    try:
        place = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(
            f"results folder {folder} cannot be written ({error.strerror}: {place}); choose another with results=FOLDER"
        ) from None


def _check_lengths(experiment: ExperimentConfig, settings) -> None:
    """Reject lengths that the model cannot read. (What it cannot train is found when it is loaded, before any write.)"""
    context = getattr(settings, "max_position_embeddings", None)
    for name, task in experiment.tasks.items():
        for what, length in (
            ("max_completion_tokens", task.max_completion_tokens),
            ("sample.max_new_tokens", experiment.sample.max_new_tokens),
        ):
            if context is not None and task.max_prompt_tokens + length > context:
                raise UserError(
                    f"tasks.{name}: max_prompt_tokens={task.max_prompt_tokens} and {what}={length} exceed "
                    f"the {context} tokens of context of {experiment.model.name}; lower one of them"
                )


def _load(name: str, task: Task, config: TaskConfig, renderer: Renderer) -> PlannedTask:
    data = task.load(config)
    return PlannedTask(name, task, prepare_task(name, task, data, config, renderer), hash_value(asdict(data)))


def _check_data(losses: Mapping[str, Loss], tasks: Mapping[str, PlannedTask]) -> None:
    for name, planned in tasks.items():
        unpaired = planned.task.trains and not planned.prepared.splits["train"].paired
        for loss in losses.values():
            if "scores" in loss.needs:
                raise UserError(f"loss {loss.name!r} needs scores, and task {name!r} has none")
            if unpaired and loss.data == "paired":
                raise UserError(
                    f"loss {loss.name!r} needs pairs, and the data of task {name!r} are unpaired; use an unpaired loss such as rpo_unpaired"
                )


def _start_inputs(experiment: ExperimentConfig, model_hash: str, planned: PlannedTask) -> dict:
    model = experiment.model
    tuning = {"full": {}, "last_layers": {"last_layers": model.last_layers}, "lora": asdict(model.lora)}[model.tune]
    return {
        "format": FORMAT,
        "model": model_hash,
        "dtype": model.dtype,
        "tune": [model.tune, tuning],
        "tokens": planned.prepared.splits["train"].hash,
        "sft": _numeric(asdict(experiment.sft)),
    }


def _cell(
    experiment: ExperimentConfig,
    planned: PlannedTask,
    start: dict,
    loss: Loss | None,
    settings: Mapping[str, object],
    seed: int,
    evaluated_on: tuple[str, ...],
    encoder: Encoder,
) -> Cell:
    inputs: dict[str, object] = {"start": start, "seed": seed}
    if loss is not None:
        inputs |= {
            "loss": loss.name,
            "sources": _sources(loss, settings),
            "settings": dict(settings),
            "train": _numeric(asdict(experiment.train)),
            "dev": planned.prepared.splits["dev"].hash,
        }
        if "prompt_embeddings" in loss.needs:
            prompts = [prompt_text(e.prompt) for split in planned.prepared.splits.values() for e in split.examples]
            inputs["embeddings"] = {"encoder": encoder.hash, "pieces": MAX_PIECES, "prompts": hash_value(prompts)}
    return Cell(key_of(inputs), planned.name, loss.name if loss else SFT, dict(settings), seed, evaluated_on, inputs)


def _sources(loss: Loss, settings: Mapping[str, object]) -> list[str]:
    """Return the hashes of all code that a loss consists of: its files, what its settings name, the batch it reads."""
    origins = [origin_of(function) for function in (*loss.functions, PreferenceBatch.from_logps)]
    for name, parameter in loss.hyperparameters.items():
        if isinstance(parameter.choices, Registry):
            origins.append(parameter.choices.origin(settings[name]))
    return [hash_source(Path(origin.rpartition(":")[0])) for origin in origins]


def _numeric(optim: dict) -> dict:
    """Return the settings that determine numbers: how a batch is cut into forward passes is none of them."""
    return {key: value for key, value in optim.items() if key != "micro_batch_tokens"}
