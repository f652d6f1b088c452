"""From an experiment to its cells: data, model and the keys of all that is to be computed. Nothing runs here.

All that a user can get wrong is found while planning, before anything expensive starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.backbones.language_model.from_scratch import MODEL, pretrained
from harness.backbones.language_model.needs import SUPPLIERS
from harness.backbones.language_model.policy import load_tokenizer, model_settings
from harness.backbones.language_model.preferences import prompt_ids
from harness.backbones.language_model.scoring import stored_at
from harness.backbones.language_model.tokens import prepare_task
from harness.core.assets import model_folder, weights_hash
from harness.core.config import ExperimentConfig
from harness.core.encoder import Encoder
from harness.core.errors import UserError
from harness.core.hashing import hash_source, hash_value
from harness.core.prompt import prompt_text
from harness.core.records import SFT
from harness.core.render import Renderer
from harness.core.store import Store, key_of
from harness.experiment.cells import Cell, PlannedTask
from harness.experiment.checks import check_data, check_lengths, check_needs, check_trunk, check_writable
from harness.experiment.plugins import load_plugins
from harness.experiment.resolve import Resolved, resolve
from harness.training.base import Progress
from harness.training.supply import KeyInputs, supplier_of
from losses import Loss, PreferenceBatch
from losses.needs import NEEDS
from losses.registry import Registry, origin_of

FORMAT = 1  # raised when training changes what the same experiment computes


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
    second_reference: Path | None = None

    @property
    def decoding(self) -> dict:
        """What determines a sample besides policy, prompt and seed; how many are drawn at once does not."""
        return {key: value for key, value in asdict(self.experiment.sample).items() if key != "batch_size"}

    @property
    def trunk_bytes(self) -> int:
        """What the frozen layers' activations take on disk: 0 where all layers are trained."""
        model = self.experiment.model
        if model.tune != "last_layers":
            return 0
        splits = [split for planned in self.tasks.values() for split in planned.prepared.splits.values()]
        tokens = sum(stored_at(split.sequences)[-1] for split in splits)
        width = model_settings(self.model, model).get_text_config().hidden_size
        return tokens * width * (4 if model.dtype == "float32" else 2)

    def description(self) -> dict:
        """Return the plan as reporting reads it (`plan.json`)."""
        return {
            "experiment": self.experiment.name,
            "baselines": {name: planned.task.baseline for name, planned in self.tasks.items()},
            "decoding": self.decoding,
            "judges": {name: [judge.name for judge in self.resolved.judges_of(name)] for name in self.tasks},
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


def make_plan(
    experiment: ExperimentConfig, progress: Progress = lambda done, total: None, *, to_run: bool = True
) -> Plan:
    """Check an experiment against what is there, load its data, and expand it into cells.

    A model from scratch is the one thing that is made here, for its tokenizer decides what the token data are; what
    else can be wrong is found before. `progress` follows its training.

    Raises `UserError` or `RegistryError` for an unknown name or setting, data or a model that cannot be read,
    lengths that the model cannot take, a judge that could not work (a missing key too, where the plan is `to_run`), or a results folder that cannot be written.
    """
    load_plugins(experiment.plugins)
    resolved = resolve(experiment)
    for judge in resolved.judges.values():
        judge.kind.check(judge.options)
        if to_run:
            judge.kind.ready(judge.options)
    check_needs(resolved.losses.values(), SUPPLIERS)
    check_writable(experiment.folder)
    store = Store(experiment.store)
    encoder = Encoder(experiment.encoder, store)
    data = {name: task.load(experiment.tasks[name]) for name, task in resolved.tasks.items()}
    if experiment.model.from_scratch:
        check_lengths(experiment, experiment.model.from_scratch.context)
        folder = pretrained(experiment.model.from_scratch, store, progress).path / MODEL
    else:
        folder = model_folder(experiment.model.name, experiment.model.revision)
        settings = model_settings(folder, experiment.model)
        check_lengths(experiment, getattr(settings, "max_position_embeddings", None))
    renderer = Renderer(load_tokenizer(folder, experiment.model))
    model_hash = weights_hash(folder)
    planned = {
        name: PlannedTask(
            name,
            task,
            prepare_task(name, task, data[name], experiment.tasks[name], renderer),
            hash_value(asdict(data[name])),
            resolved.generations.get(name),
        )
        for name, task in resolved.tasks.items()
    }
    for name in resolved.evaluated_on:
        check_data(name, {loss: resolved.losses[loss] for loss, _ in resolved.points_of[name]}, planned[name])
    starts = {name: _start_inputs(experiment, model_hash, planned[name]) for name in resolved.evaluated_on}
    second = _second_reference(experiment, resolved.losses, renderer)
    second_hash = weights_hash(second) if second else None
    needed = {
        name: KeyInputs(
            hash_value([prompt_text(e.prompt) for s in task.prepared.splits.values() for e in s.examples]),
            lambda: encoder.hash,
            second_hash,
        )
        for name, task in planned.items()
    }
    cells = [
        _cell(
            experiment,
            planned[name],
            starts[name],
            resolved.losses.get(loss),
            settings,
            seed,
            evaluated_on,
            needed[name],
        )
        for name, evaluated_on in resolved.evaluated_on.items()
        for seed in experiment.seeds
        for loss, settings in [(SFT, {}), *resolved.points_of[name]]
    ]
    plan = Plan(experiment, resolved, folder, model_hash, renderer, encoder, planned, starts, cells, store, second)
    check_trunk(plan.trunk_bytes, experiment.model)
    return plan


def _second_reference(experiment: ExperimentConfig, losses: Mapping[str, Loss], renderer: Renderer) -> Path | None:
    """Return the folder of the second reference where a loss needs one; it must read the same tokens."""
    wanting = [loss.name for loss in losses.values() if "second_reference" in loss.needs]
    if not wanting:
        return None
    name = experiment.second_reference
    if not name:
        raise UserError(f"loss {wanting[0]!r} needs a second reference; name a model in 'second_reference'")
    folder = model_folder(name, None)
    if load_tokenizer(folder, experiment.model).get_vocab() != renderer.tokenizer.get_vocab():
        raise UserError(f"second_reference {name}: its tokenizer is not that of {experiment.model.name}")
    return folder


def _start_inputs(experiment: ExperimentConfig, model_hash: str, planned: PlannedTask) -> dict:
    model = experiment.model
    tuning = {"full": {}, "last_layers": {"last_layers": model.last_layers}, "lora": asdict(model.lora)}[model.tune]
    return {
        "format": FORMAT,
        "model": model_hash,
        "dtype": model.dtype,
        "tune": [model.tune, tuning],
        "tokens": planned.prepared.splits["train"].hash,
        "sft": experiment.sft.numeric(),
    }


def _cell(
    experiment: ExperimentConfig,
    planned: PlannedTask,
    start: dict,
    loss: Loss | None,
    settings: Mapping[str, object],
    seed: int,
    evaluated_on: tuple[str, ...],
    needed: KeyInputs,
) -> Cell:
    inputs: dict[str, object] = {"start": start, "seed": seed}
    if planned.generation:
        inputs["preferences"] = {**drawing_inputs(planned, start), **planned.generation.labelling}
    if loss is not None:
        inputs |= {
            "loss": loss.name,
            "sources": _sources(loss, settings),
            "settings": dict(settings),
            "train": experiment.train.numeric(),
            "dev": planned.prepared.splits["dev"].hash,
        }
        parts = {need: supplier_of(need, SUPPLIERS).key(needed) for need in sorted(loss.needs)}
        inputs["needs"] = {need: part for need, part in parts.items() if part is not None}
    return Cell(key_of(inputs), planned.name, loss.name if loss else SFT, dict(settings), seed, evaluated_on, inputs)


def drawing_inputs(planned: PlannedTask, start: dict) -> dict:
    """Return what determines the completions that a generating task samples from its SFT policy."""
    splits = planned.prepared.splits
    prompts = {name: [prompt_ids(split, example) for example in split.examples] for name, split in splits.items()}
    return {**planned.generation.drawing, "start": start, "prompts": hash_value(prompts)}


def _sources(loss: Loss, settings: Mapping[str, object]) -> list[str]:
    """Return the hashes of all code that a loss consists of: its files, what its settings name, the batch it reads."""
    own = [need.compute for need in map(NEEDS.get, sorted(loss.needs)) if need.compute is not None]
    origins = [origin_of(function) for function in (*loss.functions, *own, PreferenceBatch.from_logps)]
    for name, parameter in loss.hyperparameters.items():
        if isinstance(parameter.choices, Registry):
            origins.append(parameter.choices.origin(settings[name]))
    return [hash_source(Path(origin.rpartition(":")[0])) for origin in origins]
