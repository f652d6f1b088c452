"""The names in an experiment file, turned into what is registered under them. Reads no data, no model, no key."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from omegaconf import OmegaConf

import harness.evaluation.judges  # noqa: F401  (registers the judges)
from harness.config import ExperimentConfig, TaskConfig, merged
from harness.errors import UserError
from harness.evaluation.base import JUDGES, JudgeKind
from harness.tasks import TASKS, Task
from losses import Loss, get_loss

SFT = "sft"  # the row of the policy that every loss starts from


@dataclass(frozen=True)
class Resolved:
    """What an experiment's names stand for.

    `points` are the grid: a loss's name with settings, for each policy to train from one task and seed.
    `evaluated_on` says for each training task on which tasks its policies are evaluated, itself first.
    """

    losses: dict[str, Loss]
    points: list[tuple[str, dict]]
    tasks: dict[str, Task]
    evaluated_on: dict[str, tuple[str, ...]]
    judge: JudgeKind
    judge_options: object


def resolve(experiment: ExperimentConfig) -> Resolved:
    """Look up every name and expand the grids.

    Raises `UserError` or `RegistryError` for an unknown name or setting (with the nearest) and for tasks that do not
    fit together.
    """
    if SFT in experiment.losses:
        raise UserError("losses: 'sft' needs no entry; the SFT policy is a row of every leaderboard")
    losses = {name: get_loss(name) for name in experiment.losses}
    points = [(name, point) for name, loss in losses.items() for point in _grid(loss, experiment.losses[name])]
    tasks = {name: _task(name, config) for name, config in experiment.tasks.items()}
    judge, options = _judge(experiment)
    return Resolved(losses, points, tasks, _evaluations(experiment, tasks), judge, options)


def _grid(loss: Loss, given: object) -> list[dict]:
    """Return the settings that an entry of `losses:` expands to; the word "grid" stands for the registered values."""
    where = f"losses.{loss.name}"
    if given == "grid":
        return loss.grid()
    if given is not None and not isinstance(given, Mapping):
        raise UserError(
            f"{where}: give hyper-parameters as a mapping (a list is a grid), or the word 'grid'; got {given!r}"
        )
    axes = []
    for key, value in (given or {}).items():
        parameter = loss.hyperparameters.get(key)
        if value == "grid" and parameter and parameter.type is not str:
            value = list(parameter.grid)
        axes.append([(key, v) for v in (value if isinstance(value, list) else [value])])
    points = [loss.settings(dict(point)) for point in itertools.product(*axes)]
    if not points:
        raise UserError(f"{where}: an empty list of values leaves nothing to run")
    for i, point in enumerate(points):
        if point in points[:i]:
            raise UserError(f"{where}: the grid holds the same settings twice: {point}")
    return points


def _task(name: str, config: TaskConfig) -> Task:
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
    name = given.pop("kind", "preference_model")
    if not isinstance(name, str):
        raise UserError(f"judge.kind must be a name, got {name!r}")
    kind = JUDGES.get(name)
    options = OmegaConf.to_object(merged(kind.options, given, f"judge ({kind.name})"))
    return kind, options
