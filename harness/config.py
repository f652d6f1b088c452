"""Experiment files: YAML with OmegaConf overrides, read into typed dataclasses. Every dial of the harness is here."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.errors import UserError


@dataclass
class LoraConfig:
    """Low-rank adapters (peft). `targets` as peft takes them: module names or "all-linear"."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str = "all-linear"


@dataclass
class ModelConfig:
    """The model that every cell starts from: a packaged asset's name, a local folder, or a hub id."""

    name: str = "smollm2-135m-instruct"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    tune: Literal["full", "lora", "last_layers"] = "full"  # what is trained, in SFT and in every loss alike
    last_layers: int = 4  # for tune: last_layers
    lora: LoraConfig = field(default_factory=LoraConfig)  # for tune: lora
    trust_remote_code: bool = False


@dataclass
class TaskConfig:
    """Where a task's data come from, how much of it is used, and how long its texts may be."""

    kind: str = ""  # a registered task; default: the key under which this stands
    data: str = "packaged"  # "packaged", a file, a folder, or a hub id
    subset: str | None = None  # a hub data set's configuration or folder
    evaluates: list[str] = field(default_factory=list)  # for a task that trains nothing: whose policies it evaluates
    train_pairs: int | None = None  # None: all there are
    dev_pairs: int | None = 256
    test_prompts: int | None = 256
    judge_pairs: int | None = None  # pairs kept from every policy, to fit the preference model on
    max_prompt_tokens: int = 256
    max_completion_tokens: int = 256
    overlong: Literal["truncate", "drop"] = "truncate"  # what happens to longer rows; both are counted


@dataclass
class OptimConfig:
    """Optimiser and schedule, the same for every loss."""

    lr: float = 5e-7
    optimizer: Literal["adamw", "rmsprop"] = "rmsprop"
    weight_decay: float = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up
    warmup_steps: int = 0
    clip: float = 10.0  # largest norm of the gradient
    epochs: int = 1
    batch_size: int = 64  # pairs in an effective batch, over all processes
    micro_batch_tokens: int = 8192  # padded tokens in one forward pass; changes speed and memory, no number


@dataclass
class SftConfig(OptimConfig):
    """Supervised fine-tuning on the chosen completions: the start and the reference of every cell."""

    seed: int = 0


@dataclass
class TrainConfig(OptimConfig):
    """Preference training."""

    eval_every: int = 0  # optimiser steps between evaluations on the dev pairs; 0: only at start and end


@dataclass
class SampleConfig:
    """Decoding, the same for every policy. Greedy at temperature 0."""

    temperature: float = 1.0
    top_p: float = 0.95
    max_new_tokens: int = 256
    batch_size: int = 16


@dataclass
class ExperimentConfig:
    """One experiment: losses x seeds x tasks on one backbone."""

    name: str = ""  # default: the file's name
    results: str = "results"
    plugins: list[str] = field(default_factory=list)  # Python files that register losses, tasks or judges
    seeds: list[int] = field(default_factory=lambda: [0])
    model: ModelConfig = field(default_factory=ModelConfig)
    encoder: str = "all-minilm-l6-v2"  # of prompts (RPO) and of responses (preference_model)
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    losses: dict[str, Any] = field(default_factory=dict)  # name -> hyper-parameters; a list is a grid
    sft: SftConfig = field(default_factory=SftConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    judge: dict[str, Any] = field(default_factory=lambda: {"kind": "preference_model"})

    @property
    def folder(self) -> Path:
        """Where this experiment's results go."""
        return Path(self.results) / self.name

    @property
    def store(self) -> Path:
        """Where the artifacts that experiments share go."""
        return Path(self.results) / "store"


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read an experiment file, apply `key.path=value` overrides, and return it typed and checked.

    Raises `UserError` for a missing file, broken YAML, an unknown key (with the nearest), or a wrong type.
    Names of losses, tasks and judges are checked by `harness.plan`, which knows the registries.
    """
    path = Path(path)
    try:
        given = OmegaConf.load(path)
    except FileNotFoundError:
        raise UserError(f"no experiment file at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {_first_line(error)}") from None
    if not OmegaConf.is_dict(given):
        raise UserError(f"{path}: an experiment file is a mapping of keys, such as 'tasks:' and 'losses:'")
    config = merged(ExperimentConfig, given, str(path))
    for override in overrides:
        key, separator, _ = override.partition("=")
        if not separator or not key:
            raise UserError(f"override {override!r} is not of the form key.path=value (for example train.lr=1e-5)")
        try:
            change = OmegaConf.from_dotlist([override])
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise UserError(f"override {override!r}: {_first_line(error)}") from None
        config = merged(config, change, f"override {override!r}")
    experiment = OmegaConf.to_object(config)
    experiment.name = experiment.name or path.stem
    _check(experiment, str(path))
    return experiment


def merged(schema: Any, given: Any, where: str) -> Any:
    """Merge `given` into an OmegaConf structured `schema`; raise `UserError` naming key, place and remedy."""
    base = OmegaConf.structured(schema) if isinstance(schema, type) else schema
    try:
        result = OmegaConf.merge(base, given)
        OmegaConf.to_container(result, resolve=True, throw_on_missing=True)
        return result
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {_explain(error)}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {_first_line(error)} (a section holds the wrong kind of value)") from None


def _explain(error: OmegaConfBaseException) -> str:
    key = getattr(error, "full_key", None) or getattr(error, "key", None) or "?"
    kind = getattr(error, "object_type", None)
    if type(error).__name__ == "ConfigKeyError" and is_dataclass(kind):
        known = [f.name for f in fields(kind)]
        close = difflib.get_close_matches(str(error.key), known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    return f"{key}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]


def _check(experiment: ExperimentConfig, where: str) -> None:
    """Reject values that no run could use."""
    for name in (experiment.name, *experiment.tasks):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UserError(f"{where}: name {name!r} must be letters, digits, '.', '_' and '-' (it names a folder)")
    if experiment.name == "store":
        raise UserError(f"{where}: the name 'store' is taken by the shared artifacts; choose another")
    for what, values in (("seeds", experiment.seeds), ("losses", experiment.losses), ("tasks", experiment.tasks)):
        if not values:
            raise UserError(f"{where}: '{what}' is empty; name at least one")
    if len(set(experiment.seeds)) != len(experiment.seeds):
        raise UserError(f"{where}: seeds holds a seed twice: {experiment.seeds}")
    model = experiment.model
    at_least = {
        "model.last_layers": (model.last_layers, 1),
        "model.lora.rank": (model.lora.rank, 1),
        "model.lora.dropout": (model.lora.dropout, 0),
        "seeds": (min(experiment.seeds), 0),
        "sft.seed": (experiment.sft.seed, 0),
        "sample.max_new_tokens": (experiment.sample.max_new_tokens, 1),
        "sample.batch_size": (experiment.sample.batch_size, 1),
        "sample.temperature": (experiment.sample.temperature, 0),
        "train.eval_every": (experiment.train.eval_every, 0),
    }
    for section, optim in (("sft", experiment.sft), ("train", experiment.train)):
        lows = {"batch_size": 1, "micro_batch_tokens": 1, "epochs": 1, "warmup_steps": 0, "weight_decay": 0}
        for key, low in lows.items():
            at_least[f"{section}.{key}"] = (getattr(optim, key), low)
    for name, task in experiment.tasks.items():
        for key in (
            "train_pairs",
            "dev_pairs",
            "test_prompts",
            "judge_pairs",
            "max_prompt_tokens",
            "max_completion_tokens",
        ):
            if getattr(task, key) is not None:
                at_least[f"tasks.{name}.{key}"] = (getattr(task, key), 1)
    for key, (value, low) in at_least.items():
        if value < low:
            raise UserError(f"{where}: {key} must be at least {low}, got {value}")
    above_zero = {"model.lora.alpha": model.lora.alpha}
    for section, optim in (("sft", experiment.sft), ("train", experiment.train)):
        above_zero |= {f"{section}.lr": optim.lr, f"{section}.clip": optim.clip}
    for key, value in above_zero.items():
        if not 0 < value < math.inf:
            raise UserError(f"{where}: {key} must be a number above 0, got {value}")
    if not model.lora.dropout < 1:
        raise UserError(f"{where}: model.lora.dropout must be below 1, got {model.lora.dropout}")
    if not 0 < experiment.sample.top_p <= 1:
        raise UserError(f"{where}: sample.top_p must be above 0 and at most 1, got {experiment.sample.top_p}")
