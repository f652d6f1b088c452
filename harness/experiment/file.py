"""Reads an experiment file: YAML and overrides become the typed, checked dataclasses of `harness.core.config`."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.core.config import ExperimentConfig
from harness.core.dials import out_of_bounds
from harness.core.errors import UserError, first_line
from harness.experiment.screen import screened

LONGEST_SHOWN, LONGEST_MESSAGE = 100, 300  # characters of an override and of OmegaConf's messages in an error
LONGEST_NAME = 100  # characters; a folder's name holds a stage, a task and a judge within the 255 of a file system
LARGEST_FROM_SCRATCH = 10**10  # weights
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{,{LONGEST_NAME - 1}}}")
NAME_RULE = f"must be letters, digits, '.', '_' and '-' (it names a folder), {LONGEST_NAME} at most"


def load_experiment(path: str | Path, overrides: Sequence[str] = (), *, runs: bool = True) -> ExperimentConfig:
    """Read an experiment file, apply `key.path=value` overrides, and return it typed and checked.

    Pass `runs=False` for a file that is not run; it may then name a model only, without seeds, losses or tasks.
    Raises `UserError` for a missing file, broken YAML, an unknown key (with the nearest), or a wrong type.
    Names of losses, tasks and judges are checked by `harness.experiment.plan`, which knows the registries.
    """
    path = Path(os.path.expanduser(path))
    config = merged(ExperimentConfig, read_yaml(path), str(path))
    for override in overrides:
        key, separator, _ = override.partition("=")
        told = f"override {override[:LONGEST_SHOWN]!r}"
        if not separator or not key:
            raise UserError(f"{told} is not of the form key.path=value (for example train.lr=1e-5)")
        try:
            change = OmegaConf.from_dotlist([override])
        except RecursionError:
            raise UserError(f"{told}: nested too deeply") from None
        except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
            raise UserError(f"{told}: {_shown(error)}") from None
        config = merged(config, change, told)
    experiment = OmegaConf.to_object(config)
    experiment.name = experiment.name or path.stem
    _check(experiment, str(path), runs)
    return experiment


def read_yaml(path: Path) -> DictConfig:
    """Return the mapping in a YAML file, its interpolations not resolved.

    Raises `UserError` for a missing file and for one that is no YAML, holds no mapping, is nested too deeply, or whose
    aliases expand to more than 10,000 nodes.
    """
    try:
        raw = OmegaConf.load(path)
    except FileNotFoundError:
        raise UserError(f"no experiment file at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid YAML: nested too deeply") from None
    except (OmegaConfBaseException, ValueError) as error:  # ValueError: an integer of thousands of digits
        raise UserError(f"{path}: {_shown(error)}") from None
    if not OmegaConf.is_dict(raw):
        raise UserError(f"{path}: an experiment file is a mapping of keys, such as 'tasks:' and 'losses:'")
    return raw


def merged(schema: Any, values: Any, where: str) -> Any:
    """Merge `values` into an OmegaConf structured `schema`.

    Raises `UserError` naming the key, the place and the remedy.
    """
    base = OmegaConf.structured(schema) if isinstance(schema, type) else schema
    try:
        result = OmegaConf.merge(base, screened(values, where))
        screened(OmegaConf.to_container(result, resolve=True, throw_on_missing=True), where)
        return result
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {_explain(error)}") from None
    except (TypeError, ValueError, OverflowError) as error:  # OverflowError: an integer beyond any float
        raise UserError(f"{where}: {_shown(error)} (a section holds the wrong kind of value)") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None


def _explain(error: OmegaConfBaseException) -> str:
    key = getattr(error, "full_key", None) or getattr(error, "key", None) or "?"
    kind = getattr(error, "object_type", None)
    if type(error).__name__ == "ConfigKeyError" and is_dataclass(kind):
        known = [f.name for f in fields(kind)]
        close = difflib.get_close_matches(str(error.key), known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    return f"{key}: {_shown(error)}"


def _shown(error: Exception) -> str:
    return first_line(error)[:LONGEST_MESSAGE]


def _check(experiment: ExperimentConfig, where: str, runs: bool) -> None:
    """Raise `UserError` for the first value that no run could use."""
    rules = [_names, *([_something_to_run] if runs else []), out_of_bounds, _seeds, _kept, _heads, _size, _samples]
    for problem in itertools.chain.from_iterable(rule(experiment) for rule in rules):
        raise UserError(f"{where}: {problem}")


def _names(experiment: ExperimentConfig) -> Iterator[str]:
    for name in (experiment.name, *experiment.tasks, *experiment.judges):
        if problem := name_problem(name):
            yield problem
    if experiment.name.lower() in ("store", "judge-checks"):
        yield f"the name {experiment.name!r} is taken by what experiments share; choose another"
    for what in ("tasks", "judges"):
        lowered = [name.lower() for name in getattr(experiment, what)]
        for name in getattr(experiment, what):
            if lowered.count(name.lower()) > 1:
                yield f"{what}: {name!r} differs from another name in its case alone, and some file systems ignore it"
    if not experiment.results or not experiment.results.isprintable():
        yield f"results={experiment.results!r} names no folder"


def name_problem(name: str) -> str:
    """Return what is wrong with a name that folders are named by, or ""."""
    if not NAME.fullmatch(name):
        return f"name {name[:LONGEST_SHOWN]!r} {NAME_RULE}"
    return f"name {name!r} may not end in .partial, as unfinished results do" if name.endswith(".partial") else ""


def _something_to_run(experiment: ExperimentConfig) -> Iterator[str]:
    for what in ("seeds", "losses", "tasks"):
        if not getattr(experiment, what):
            yield f"'{what}' is empty; name at least one"


def _seeds(experiment: ExperimentConfig) -> Iterator[str]:
    if len(set(experiment.seeds)) != len(experiment.seeds):
        yield f"seeds holds a seed twice: {experiment.seeds}"


def _kept(experiment: ExperimentConfig) -> Iterator[str]:
    shares = experiment.train.keep_at
    names = [f"{share:g}" for share in shares]  # of the folders that the policies are kept in
    for name in names:
        if names.count(name) > 1:
            yield f"train.keep_at holds the share {name} twice: {shares} (they are told apart by six digits)"


def _heads(experiment: ExperimentConfig) -> Iterator[str]:
    scratch = experiment.model.from_scratch
    if scratch and scratch.hidden % (2 * scratch.heads):
        yield (
            f"model.from_scratch.hidden={scratch.hidden} must be an even number of dimensions for each of the "
            f"{scratch.heads} heads"
        )


def _size(experiment: ExperimentConfig) -> Iterator[str]:
    if scratch := experiment.model.from_scratch:
        layer = 4 * scratch.hidden**2 + 3 * scratch.hidden * scratch.feed_forward
        weights = scratch.vocabulary * scratch.hidden + scratch.layers * layer
        if weights > LARGEST_FROM_SCRATCH:
            yield (
                f"model.from_scratch would have {weights:.2g} weights, more than {LARGEST_FROM_SCRATCH:.0e}; lower "
                "hidden, layers, feed_forward or vocabulary"
            )


def _samples(experiment: ExperimentConfig) -> Iterator[str]:
    for name, task in experiment.tasks.items():
        if task.generate and task.generate.labels == "pairs" and task.generate.samples < 2:
            yield f"tasks.{name}.generate.samples must be at least 2 for pairs, got {task.generate.samples}"
