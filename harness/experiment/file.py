"""Reading an experiment file: YAML and overrides into the typed dataclasses of `harness.core.config`, checked."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.core.config import ExperimentConfig, OptimConfig
from harness.core.duration import Interval
from harness.core.errors import UserError


def load_experiment(path: str | Path, overrides: Sequence[str] = (), *, runs: bool = True) -> ExperimentConfig:
    """Read an experiment file, apply `key.path=value` overrides, and return it typed and checked.

    One that only names a model, and compares nothing, is good where nothing of it `runs`.
    Raises `UserError` for a missing file, broken YAML, an unknown key (with the nearest), or a wrong type.
    Names of losses, tasks and judges are checked by `harness.experiment.plan`, which knows the registries.
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
    _check(experiment, str(path), runs)
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


def _check(experiment: ExperimentConfig, where: str, runs: bool) -> None:
    """Reject values that no run could use."""
    for name in (experiment.name, *experiment.tasks):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UserError(f"{where}: name {name!r} must be letters, digits, '.', '_' and '-' (it names a folder)")
    if experiment.name in ("store", "judge-checks"):
        raise UserError(f"{where}: the name {experiment.name!r} is taken by what experiments share; choose another")
    for what, values in (("seeds", experiment.seeds), ("losses", experiment.losses), ("tasks", experiment.tasks)):
        if runs and not values:
            raise UserError(f"{where}: '{what}' is empty; name at least one")
    if len(set(experiment.seeds)) != len(experiment.seeds):
        raise UserError(f"{where}: seeds holds a seed twice: {experiment.seeds}")
    model = experiment.model
    optims: dict[str, OptimConfig] = {"sft": experiment.sft, "train": experiment.train}
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
    if scratch := model.from_scratch:
        optims["model.from_scratch.pretrain"] = scratch.pretrain
        lows = {"vocabulary": 257, "hidden": 1, "layers": 1, "heads": 1, "feed_forward": 1, "context": 2}
        at_least |= {f"model.from_scratch.{key}": (getattr(scratch, key), low) for key, low in lows.items()}
        if scratch.hidden % (2 * max(1, scratch.heads)):
            raise UserError(
                f"{where}: model.from_scratch.hidden={scratch.hidden} must be an even number of dimensions for each of "
                f"the {scratch.heads} heads"
            )
    for section, optim in optims.items():
        lows = {"batch_size": 1, "micro_batch_tokens": 1, "warmup_steps": 0, "weight_decay": 0}
        lows["epochs"] = 0 if section == "sft" else 1  # 0: the model as it is
        for key, low in lows.items():
            at_least[f"{section}.{key}"] = (getattr(optim, key), low)
    for name, task in experiment.tasks.items():
        for key in (
            "train_pairs",
            "dev_pairs",
            "dev_prompts",
            "test_prompts",
            "judge_pairs",
            "max_prompt_tokens",
            "max_completion_tokens",
        ):
            if getattr(task, key) is not None:
                at_least[f"tasks.{name}.{key}"] = (getattr(task, key), 1)
        if task.generate:
            lows = {"samples": 2 if task.generate.labels == "pairs" else 1, "prompt_words": 1, "seed": 0}
            at_least |= {
                f"tasks.{name}.generate.{key}": (getattr(task.generate, key), low) for key, low in lows.items()
            }
            if not 0 <= task.generate.flip < 0.5:
                raise UserError(
                    f"{where}: tasks.{name}.generate.flip must be at least 0 and below 0.5, got {task.generate.flip}"
                )
    for share in experiment.train.keep_at:
        if not 0 < share < 1:
            raise UserError(f"{where}: train.keep_at holds {share}; give shares of the steps between 0 and 1")
    for key, (value, low) in at_least.items():
        if value < low:
            raise UserError(f"{where}: {key} must be at least {low}, got {value}")
    above_zero = {"model.lora.alpha": model.lora.alpha, "model.trunk_cap_gb": model.trunk_cap_gb}
    for section, optim in optims.items():
        above_zero |= {f"{section}.lr": optim.lr, f"{section}.clip": optim.clip}
        try:
            Interval.parse(optim.checkpoint_every)
        except ValueError as error:
            raise UserError(f"{where}: {section}.checkpoint_every: {error}") from None
    for key, value in above_zero.items():
        if not 0 < value < math.inf:
            raise UserError(f"{where}: {key} must be a number above 0, got {value}")
    if not model.lora.dropout < 1:
        raise UserError(f"{where}: model.lora.dropout must be below 1, got {model.lora.dropout}")
    if not 0 < experiment.sample.top_p <= 1:
        raise UserError(f"{where}: sample.top_p must be above 0 and at most 1, got {experiment.sample.top_p}")
