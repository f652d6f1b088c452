"""Resolves the names in an experiment file to what is registered under them. Reads no data, model or key."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from omegaconf import OmegaConf

import harness.evaluation.judges  # noqa: F401  (registers the judges)
from harness.backbones.language_model.preferences import Generation
from harness.core.config import ExperimentConfig, GenerateConfig, TaskConfig
from harness.core.errors import UserError
from harness.core.hashing import hash_source
from harness.core.records import SFT
from harness.core.source import is_of_project
from harness.evaluation.base import JUDGES, JudgeKind
from harness.experiment.file import merged
from harness.tasks import TASKS, Task
from harness.tasks.rewards.base import find_reward
from losses import Loss, get_loss
from losses.registry import nearest

MOST_POINTS = 10_000  # of one loss's grid


@dataclass(frozen=True)
class JudgeChoice:
    """A judge of the experiment.

    `name` is its name in a panel, "" for a single judge; `tasks` are the tasks that it judges, () for all.
    """

    name: str
    kind: JudgeKind
    options: object
    tasks: tuple[str, ...]

    @cached_property
    def source(self) -> str:
        """A hash of the code of a judge of the user's own; "" for a built-in one, and for one that is in no file."""
        file = Path(JUDGES.origin(self.kind.name).rpartition(":")[0])
        return hash_source(file) if file.is_file() and not is_of_project(file) else ""


@dataclass(frozen=True)
class Resolved:
    """What an experiment's names stand for.

    - `points`: the grid, a (loss name, settings) for each policy to train from one task and seed.
    - `points_of`: by training task, the part of the grid that is trained on it.
    - `evaluated_on`: by training task, the tasks that its policies are evaluated on, itself first.
    - `generations`: how each generating task makes its preferences.
    """

    losses: dict[str, Loss]
    points: list[tuple[str, dict]]
    points_of: dict[str, list[tuple[str, dict]]]
    tasks: dict[str, Task]
    evaluated_on: dict[str, tuple[str, ...]]
    generations: dict[str, Generation]
    judges: dict[str, JudgeChoice]

    def judges_of(self, task: str) -> list[JudgeChoice]:
        """Return the judges of a task, in the order of the experiment."""
        return [judge for judge in self.judges.values() if not judge.tasks or task in judge.tasks]


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
    evaluated_on = _evaluations(experiment, tasks)
    points_of = {name: _points_of(name, experiment, points) for name in evaluated_on}
    generations = {
        name: generation for name, task in tasks.items() if (generation := _generation(name, task, experiment))
    }
    resolved = Resolved(losses, points, points_of, tasks, evaluated_on, generations, _judges(experiment))
    for task in tasks:
        if not resolved.judges_of(task):
            raise UserError(
                f"judges: none of them judges the task {task!r}; name it in the tasks of one, or leave tasks out"
            )
    return resolved


def _grid(loss: Loss, entry: object) -> list[dict]:
    """Return the settings that an entry of `losses:` expands to; the word "grid" stands for the registered values."""
    where = f"losses.{loss.name}"
    if entry == "grid":
        return loss.grid()
    if entry is not None and not isinstance(entry, Mapping):
        raise UserError(
            f"{where}: give hyper-parameters as a mapping (a list is a grid), or the word 'grid'; got {entry!r}"
        )
    axes = []
    for key, value in (entry or {}).items():
        parameter = loss.hyperparameters.get(key)
        if value == "grid" and parameter and parameter.type is not str:
            value = list(parameter.grid)
        axes.append([(key, v) for v in (value if isinstance(value, list) else [value])])
    if math.prod(map(len, axes)) > MOST_POINTS:
        raise UserError(f"{where}: the grid has {math.prod(map(len, axes)):,} points, more than {MOST_POINTS:,}")
    points = [loss.settings(dict(point)) for point in itertools.product(*axes)]
    if not points:
        raise UserError(f"{where}: an empty list of values leaves nothing to run")
    seen: set[tuple] = set()
    for point in points:
        values = tuple(point.values())  # in the order of the signature
        if values in seen:
            raise UserError(f"{where}: the grid holds the same settings twice: {point}")
        seen.add(values)
    return points


def _task(name: str, config: TaskConfig) -> Task:
    try:
        return TASKS.get(config.kind or name)
    except ValueError as error:
        raise UserError(f"tasks.{name}: {error}; set tasks.{name}.kind for a name of your own") from None


def _points_of(task: str, experiment: ExperimentConfig, points: list[tuple[str, dict]]) -> list[tuple[str, dict]]:
    """Return the part of the grid that a task's policies are trained with."""
    chosen = experiment.tasks[task].losses
    for name in chosen or ():
        if name not in experiment.losses:
            raise UserError(
                f"tasks.{task}.losses: {name!r} is no loss of this experiment{nearest(name, experiment.losses)}"
            )
    return points if chosen is None else [point for point in points if point[0] in chosen]


def _generation(name: str, task: Task, experiment: ExperimentConfig) -> Generation | None:
    """Return how a task generates its preferences; None if it has its own."""
    config = experiment.tasks[name]
    if not task.generates:
        if config.generate is not None:
            raise UserError(f"tasks.{name}.generate: {task.name} has preferences of its own; leave 'generate' out")
        return None
    decoding = experiment.sample
    if decoding.temperature != 1 or decoding.top_p != 1:
        raise UserError(
            f"tasks.{name}: its KL is measured on untruncated samples; set sample.temperature=1 and sample.top_p=1 "
            f"(they are {decoding.temperature} and {decoding.top_p})"
        )
    options = config.generate or GenerateConfig()
    return Generation(options, find_reward(options.reward), config.max_completion_tokens)


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
                f"tasks.{name}.evaluates: {name} trains policies of its own; "
                "only tasks such as alpaca_eval evaluate others'"
            )
        for source in sources if not task.trains else ():
            if source not in evaluated:
                raise UserError(
                    f"tasks.{name}.evaluates: {source!r} is no training task of this experiment ({', '.join(trained)})"
                )
            evaluated[source].append(name)
        if not task.trains and experiment.tasks[name].losses is not None:
            raise UserError(f"tasks.{name}.losses: {name} trains nothing; leave 'losses' out")
        if not task.trains and not sources:
            raise UserError(
                f"tasks.{name} trains nothing: say whose policies it evaluates, for example evaluates: [{trained[0]}]"
            )
    return {name: tuple(names) for name, names in evaluated.items()}


def _judges(experiment: ExperimentConfig) -> dict[str, JudgeChoice]:
    """Return the judges of an experiment by name; a single judge has the name ""."""
    if not experiment.judges:
        return {"": resolve_judge(experiment.judge, "judge")}
    if experiment.judge != ExperimentConfig().judge:
        raise UserError("an experiment has a judge or a panel: give either 'judge' or 'judges'")
    panel = {}
    for name, section in experiment.judges.items():
        if not isinstance(section, Mapping):
            raise UserError(
                f"judges.{name}: give what 'judge' takes, for example {{kind: preference_model}}; got {section!r}"
            )
        tasks = section.get("tasks") or []
        if not isinstance(tasks, list) or not set(tasks) <= set(experiment.tasks):
            raise UserError(f"judges.{name}.tasks must list tasks of this experiment ({', '.join(experiment.tasks)})")
        rest = {key: value for key, value in section.items() if key != "tasks"}
        panel[name] = resolve_judge(rest, f"judges.{name}", name, tuple(tasks))
    return panel


def resolve_judge(
    section: Mapping[str, object], where: str = "judge", name: str = "", tasks: tuple[str, ...] = ()
) -> JudgeChoice:
    """Look up the kind of a judge section and type its options.

    Raises `UserError` or `RegistryError` naming `where`.
    """
    section = dict(section)
    kind_name = section.pop("kind", "preference_model")
    if not isinstance(kind_name, str):
        raise UserError(f"{where}.kind must be a name, got {kind_name!r}")
    kind = JUDGES.get(kind_name)
    options = OmegaConf.to_object(merged(kind.options, section, f"{where} ({kind.name})"))
    return JudgeChoice(name, kind, options, tasks)
