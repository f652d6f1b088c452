"""From an experiment to its cells: what is trained, evaluated and judged, under which keys. Nothing runs here.

All that a user can get wrong is found while planning, before anything expensive starts.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import OmegaConf

import harness.evaluation.judges  # noqa: F401  (registers the judges)
from harness.assets import model_folder, weights_hash
from harness.config import ExperimentConfig, TaskConfig, merged
from harness.encoder import Encoder
from harness.errors import UserError
from harness.evaluation.base import JUDGES, JudgeKind
from harness.hashing import hash_source, hash_value
from harness.plugins import load_plugins
from harness.store import Store, key_of
from harness.tasks import TASKS, Task, TaskData
from harness.training.policy import context_length, load_tokenizer
from harness.training.render import Renderer
from losses import Loss, get_loss
from losses.registry import origin_of

SFT = "sft"  # the row of the policy that every loss starts from
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
    """A task of the experiment with its data loaded."""

    name: str
    task: Task
    config: TaskConfig
    data: TaskData
    hash: str


@dataclass(frozen=True)
class Plan:
    """Everything that a run needs to know before it begins."""

    experiment: ExperimentConfig
    model: Path
    model_hash: str
    renderer: Renderer
    encoder: Encoder
    tasks: dict[str, PlannedTask]
    losses: dict[str, Loss]
    judge: JudgeKind
    judge_options: object
    cells: list[Cell]
    store: Store

    def sft_inputs(self, task: str) -> dict:
        """Return what determines the SFT policy of a task: the key of its artifact."""
        return _start_inputs(self.experiment, self.model_hash, self.tasks[task])

    def description(self) -> dict:
        """Return the plan as reporting reads it (`plan.json`)."""
        return {
            "experiment": self.experiment.name,
            "baselines": {name: planned.task.baseline for name, planned in self.tasks.items()},
            "decoding": asdict(self.experiment.sample),
            "cells": [self.describe(cell) for cell in self.cells],
        }

    def describe(self, cell: Cell) -> dict:
        """Return one cell as reporting reads it (`cell.json`)."""
        loss = self.losses.get(cell.loss)
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
    losses, grids = _losses(experiment)
    tasks = {name: _resolve_task(name, config) for name, config in experiment.tasks.items()}
    evaluated_on = _evaluations(experiment, tasks)
    judge, options = _judge(experiment)
    _check_writable(experiment.folder)
    store = Store(experiment.store)
    folder = model_folder(experiment.model.name, experiment.model.revision)
    _check_lengths(experiment, context_length(folder, experiment.model))
    renderer = Renderer(load_tokenizer(folder, experiment.model))
    model_hash = weights_hash(folder)
    planned = {name: _load(name, task, experiment.tasks[name]) for name, task in tasks.items()}
    _check_data(losses, planned)
    cells = [
        _cell(experiment, model_hash, planned[name], loss, settings, seed, evaluated_on[name])
        for name in evaluated_on
        for seed in experiment.seeds
        for loss, settings in [(None, {}), *((losses[k], s) for k, grid in grids.items() for s in grid)]
    ]
    return Plan(
        experiment,
        folder,
        model_hash,
        renderer,
        Encoder(experiment.encoder, store),
        planned,
        losses,
        judge,
        options,
        cells,
        store,
    )


def _losses(experiment: ExperimentConfig) -> tuple[dict[str, Loss], dict[str, list[dict]]]:
    """Return the losses by name, and for each the settings that its grid expands to."""
    losses, grids = {}, {}
    for name, given in experiment.losses.items():
        if name == SFT:
            raise UserError("losses: 'sft' needs no entry; the SFT policy is a row of every leaderboard")
        losses[name] = loss = get_loss(name)
        if given == "grid":
            grids[name] = loss.grid()
            continue
        if given is not None and not isinstance(given, Mapping):
            raise UserError(
                f"losses.{name}: give hyper-parameters as a mapping (a list is a grid), or the word 'grid'; got {given!r}"
            )
        axes = []
        for key, value in (given or {}).items():
            parameter = loss.hyperparameters.get(key)
            values = list(parameter.grid) if value == "grid" and parameter and parameter.type is not str else value
            axes.append([(key, v) for v in (values if isinstance(values, list) else [values])])
        grids[name] = [loss.settings(dict(point)) for point in itertools.product(*axes)]
        if not grids[name]:
            raise UserError(f"losses.{name}: an empty list of values leaves nothing to run")
    return losses, grids


def _resolve_task(name: str, config: TaskConfig) -> Task:
    try:
        return TASKS.get(config.kind or name)
    except ValueError as error:
        raise UserError(f"tasks.{name}: {error}; set tasks.{name}.kind for a name of your own") from None


def _evaluations(experiment: ExperimentConfig, tasks: Mapping[str, Task]) -> dict[str, tuple[str, ...]]:
    """Return for each training task the tasks that its policies are evaluated on, itself first."""
    trained = [name for name, task in tasks.items() if task.trains]
    if not trained:
        raise UserError("tasks: none of them trains a policy; add one such as hh or tldr")
    evaluated = {name: [name] for name in trained}
    for name, task in tasks.items():
        sources = experiment.tasks[name].evaluates
        if task.trains and sources:
            raise UserError(
                f"tasks.{name}.evaluates: {name} trains policies of its own; only tasks such as alpaca_eval evaluate others'"
            )
        for source in sources if not task.trains else ():
            if source not in evaluated:
                raise UserError(
                    f"tasks.{name}.evaluates: {source!r} is no training task of this experiment ({', '.join(trained)})"
                )
            evaluated[source].append(name)
        if not task.trains and not sources:
            raise UserError(
                f"tasks.{name} trains nothing: say whose policies it evaluates, for example evaluates: [{trained[0]}]"
            )
    return {name: tuple(names) for name, names in evaluated.items()}


def _judge(experiment: ExperimentConfig) -> tuple[JudgeKind, object]:
    given = dict(experiment.judge)
    kind = JUDGES.get(given.pop("kind", "preference_model"))
    options = OmegaConf.to_object(merged(kind.options, given, f"judge ({kind.name})"))
    kind.check(options)
    return kind, options


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"results folder {folder} cannot be written ({error.strerror}); choose another with results=FOLDER"
        ) from None


def _check_lengths(experiment: ExperimentConfig, context: int | None) -> None:
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


def _load(name: str, task: Task, config: TaskConfig) -> PlannedTask:
    data = task.load(config)
    return PlannedTask(name, task, config, data, hash_value(asdict(data)))


def _check_data(losses: Mapping[str, Loss], tasks: Mapping[str, PlannedTask]) -> None:
    for name, planned in tasks.items():
        unpaired = any(not row.paired for row in planned.data.train)
        for loss in losses.values():
            if unpaired and loss.data == "paired":
                raise UserError(
                    f"loss {loss.name!r} needs pairs, and the data of task {name!r} are unpaired; use an unpaired loss such as rpo_unpaired"
                )


def _start_inputs(experiment: ExperimentConfig, model_hash: str, planned: PlannedTask) -> dict:
    task = planned.config
    return {
        "format": FORMAT,
        "model": model_hash,
        "tuning": {
            k: v for k, v in asdict(experiment.model).items() if k not in ("name", "revision", "trust_remote_code")
        },
        "data": planned.hash,
        "rows": [task.train_pairs, task.max_prompt_tokens, task.max_completion_tokens, task.overlong],
        "sft": _numeric(asdict(experiment.sft)),
    }


def _cell(
    experiment: ExperimentConfig,
    model_hash: str,
    planned: PlannedTask,
    loss: Loss | None,
    settings: Mapping[str, object],
    seed: int,
    evaluated_on: tuple[str, ...],
) -> Cell:
    inputs: dict[str, object] = {"start": _start_inputs(experiment, model_hash, planned), "seed": seed}
    if loss is not None:
        inputs |= {
            "loss": loss.name,
            "source": hash_source(Path(origin_of(loss.function).rpartition(":")[0])),
            "settings": dict(settings),
            "train": _numeric(asdict(experiment.train)),
            "dev_pairs": planned.config.dev_pairs,
        }
        if "prompt_embeddings" in loss.needs:
            inputs["encoder"] = experiment.encoder
    return Cell(key_of(inputs), planned.name, loss.name if loss else SFT, dict(settings), seed, evaluated_on, inputs)


def _numeric(optim: dict) -> dict:
    """Return the settings that determine numbers: how a batch is cut into forward passes is none of them."""
    return {key: value for key, value in optim.items() if key != "micro_batch_tokens"}
