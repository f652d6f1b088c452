"""The parts of an experiment: tasks with their data, and cells, each of which is one policy with its key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from harness.backbones.language_model.needs import SUPPLIERS
from harness.backbones.language_model.preferences import Generation, prompt_ids
from harness.backbones.language_model.tokens import PreparedTask
from harness.core.config import ExperimentConfig
from harness.core.dials import numeric
from harness.core.hashing import hash_source, hash_value
from harness.core.records import SFT, settings_text
from harness.core.store import key_of
from harness.tasks import Task
from harness.training.supply import KeyInputs, supplier_of
from losses import Loss, PreferenceBatch
from losses.needs import NEEDS
from losses.registry import Registry, origin_of

FORMAT = 1  # raise it when a change of the code changes what the same experiment computes


@dataclass(frozen=True)
class Cell:
    """One policy: a task, a loss with its settings, and a seed. The SFT policy is the cell without a loss.

    Cells are picklable values. They compare by their key, which covers everything that determines the policy.
    """

    key: str
    task: str = field(compare=False)
    loss: str = field(compare=False)
    settings: Mapping[str, object] = field(compare=False)
    seed: int = field(compare=False)
    evaluated_on: tuple[str, ...] = field(compare=False)
    inputs: Mapping[str, object] = field(compare=False)

    @property
    def label(self) -> str:
        """A readable description of the cell."""
        parts = (self.task, self.loss, settings_text(self.settings), f"seed={self.seed}")
        return " ".join(part for part in parts if part)

    @property
    def point(self) -> str:
        """A key that is equal for cells that differ only in their seed."""
        return key_of({name: value for name, value in self.inputs.items() if name != "seed"})


@dataclass(frozen=True)
class PlannedTask:
    """A task of the experiment with its tokenised data.

    `hash` is the hash of the data as read. `generation` says how a task without preferences of its own generates them.
    """

    name: str
    task: Task
    prepared: PreparedTask
    hash: str
    generation: Generation | None = None

    @property
    def paired(self) -> bool:
        """Whether its training data are, or will be, pairs."""
        return self.generation.paired if self.generation else self.prepared.splits["train"].paired


@dataclass(frozen=True)
class CellMaker:
    """Makes the cells of one task.

    `start` holds what determines its SFT policy; the needs compute their parts of a cell's key from `needed`.
    """

    experiment: ExperimentConfig
    planned: PlannedTask
    start: Mapping[str, object]
    needed: KeyInputs
    evaluated_on: tuple[str, ...]

    def cell(self, loss: Loss | None, settings: Mapping[str, object], seed: int) -> Cell:
        """Return the cell of a loss with its settings and a seed; without a loss, the cell of the SFT policy."""
        inputs: dict[str, object] = {"start": self.start, "seed": seed}
        splits = self.planned.prepared.splits
        if self.planned.generation:
            inputs["preferences"] = {**self._drawing, **self.planned.generation.labelling}
        if loss is not None:
            inputs |= {
                "loss": loss.name,
                "sources": [self._hash_of(file) for file in loss_files(loss, settings)],
                "settings": dict(settings),
                "train": numeric(self.experiment.train),
                "dev": splits["dev"].hash,
            }
            parts = {need: supplier_of(need, SUPPLIERS).key(self.needed) for need in sorted(loss.needs)}
            inputs["needs"] = {need: part for need, part in parts.items() if part is not None}
        name = loss.name if loss else SFT
        return Cell(key_of(inputs), self.planned.name, name, dict(settings), seed, self.evaluated_on, inputs)

    @cached_property
    def _drawing(self) -> dict:
        return drawing_inputs(self.planned, self.start)

    @cached_property
    def _hash_of(self) -> Callable[[Path], str]:
        return cache(hash_source)  # a thousand cells share a few files


def start_inputs(
    experiment: ExperimentConfig, model_hash: str, dropout: Mapping[str, float], planned: PlannedTask
) -> dict:
    """Return what determines a task's SFT policy: the inputs of that artifact's key.

    `dropout` are the rates in the model's configuration; the experiment's is named where it differs from them.
    """
    model = experiment.model
    drops = model.dropout > 0 or (model.tune == "lora" and model.lora.dropout > 0)
    tuning = {"full": {}, "last_layers": {"last_layers": model.last_layers}, "lora": numeric(model.lora)}[model.tune]
    return {
        "format": FORMAT,
        "model": model_hash,
        "dtype": model.dtype,
        "tune": [model.tune, tuning],
        "tokens": planned.prepared.splits["train"].hash,
        "sft": numeric(experiment.sft),
        **({} if set(dropout.values()) <= {model.dropout} else {"dropout": model.dropout}),
        **({"randomness": "seeded by step"} if drops else {}),
    }


def drawing_inputs(planned: PlannedTask, start: Mapping[str, object]) -> dict:
    """Return what determines the completions that a generating task samples from its SFT policy."""
    splits = planned.prepared.splits
    prompts = {name: [prompt_ids(split, example) for example in split.examples] for name, split in splits.items()}
    return {**planned.generation.drawing, "start": start, "prompts": hash_value(prompts)}


def loss_files(loss: Loss, settings: Mapping[str, object]) -> list[Path]:
    """Return a loss's source files: its own, those of its needs and chosen options, and the batch's."""
    own = [need.compute for need in map(NEEDS.get, sorted(loss.needs)) if need.compute is not None]
    origins = [origin_of(function) for function in (*loss.functions, *own, PreferenceBatch.from_logps)]
    for name, parameter in loss.hyperparameters.items():
        if isinstance(parameter.choices, Registry):
            origins.append(parameter.choices.origin(settings[name]))
    return [Path(origin.rpartition(":")[0]) for origin in origins]
