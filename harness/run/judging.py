"""The context of judges: the data and store of a plan or, outside any experiment, those of a packaged task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.core.config import ExperimentConfig, TaskConfig
from harness.core.encoder import Encoder
from harness.core.errors import UserError
from harness.core.places import check_results
from harness.core.record_files import read_records
from harness.core.records import Sample
from harness.core.store import Artifact, Store
from harness.evaluation.base import Comparison, Judge, JudgeContext
from harness.experiment.file import load_experiment, read_yaml
from harness.experiment.plan import Plan
from harness.experiment.plugins import load_plugins
from harness.experiment.resolve import JudgeChoice, resolve_judge
from harness.tasks import TASKS


def judge_context(plan: Plan, trained_on: str, task: str, name: str) -> JudgeContext:
    """Return what a judge of a task may use. A task without preferences uses those of the training task.

    `name` is the judge's name in a panel, "" for a single judge.
    """
    prepared = {key: planned.prepared for key, planned in plan.tasks.items()}
    own = bool(prepared[task].judge_fit)
    source = prepared[task if own else trained_on]
    return JudgeContext(
        template=plan.tasks[task].task.template,
        fit=source.judge_fit,
        held_out=source.judge_test,
        labels=source.labels if own else f"{source.labels}, on {trained_on}",
        embed=plan.encoder.embed,
        encoder=plan.encoder.hash,
        store=plan.store,
        cache=plan.store.root,
        account=f"{plan.experiment.name}/{name}" if name else plan.experiment.name,
    )


def comparisons_of(plan: Plan, task: str, split: str, samples: Artifact) -> list[Comparison]:
    """Return the comparisons of a cell's samples with their baselines, on a task's questions of one split."""
    prompts = {question.id: question.prompt for question in plan.tasks[task].prepared.questions[split].questions}
    return [
        Comparison(sample.id, prompts[sample.id], sample.response, sample.baseline)
        for sample in read_records(Sample, samples.path)
    ]


@dataclass(frozen=True)
class Standalone:
    """A judge outside a run, what it was made from, and the folder of all results, where its answers are kept."""

    judge: Judge
    choice: JudgeChoice
    context: JudgeContext
    results: Path


def standalone_judge(spec: str, task: str, account: str, results: str = "") -> Standalone:
    """Make a judge from a specification: `KIND`, `KIND:option=value,option=value`, or a YAML file.

    The file is a judge section (`kind: ...`) or an experiment; an experiment's judge is fitted on the same data as in a
    run. `task` names the task whose template and preferences are used, as the experiment configures it or else as
    packaged; a task without preferences uses HH's. Answers, fits and spending (on `account`) are kept in the store
    under `results`, by default the experiment's. Raises `UserError` or `RegistryError` if the judge could not work.
    """
    section, experiment = read_judge(spec)
    load_plugins(experiment.plugins)
    choice = resolve_judge(section, _named(spec))
    choice.kind.check(choice.options, to_run=True)
    folder = Path(results or experiment.results)
    check_results(folder, folder / "store")
    store = Store(folder / "store")
    embed, encoder = _encoder(experiment.encoder, store)
    config = experiment.tasks.get(task, TaskConfig())
    template = TASKS.get(config.kind or task).template
    source = task if TASKS.get(config.kind or task).trains else "hh"
    config = experiment.tasks.get(source, TaskConfig())
    data = TASKS.get(config.kind or source).load(config)
    context = JudgeContext(
        template=template,
        fit=data.judge_fit[: config.judge_pairs],
        held_out=data.judge_test,
        labels=data.labels if source == task else f"{data.labels}, on {source}",
        embed=embed,
        encoder=encoder,
        store=store,
        cache=store.root,
        account=account,
    )
    return Standalone(choice.kind.make(choice.options, context), choice, context, folder)


def read_judge(spec: str) -> tuple[dict, ExperimentConfig]:
    """Return the judge section of a specification, with its experiment (the default configuration if it has none)."""
    if spec.endswith((".yaml", ".yml")):
        section = _yaml(spec)
        if "kind" in section:
            return section, ExperimentConfig()
        experiment = load_experiment(spec)
        if experiment.judges:
            raise UserError(
                f"{_named(spec)}: the experiment has a panel; put the section of one of its judges into a file"
            )
        return experiment.judge, experiment
    kind, _, listed = spec.partition(":")
    parts = [part for part in listed.split(",") if part]
    if not all("=" in part for part in parts):
        raise UserError(f"{_named(spec)}: give a kind, KIND:option=value,option=value, or a YAML file")
    try:
        return {"kind": kind, **OmegaConf.to_container(OmegaConf.from_dotlist(parts))}, ExperimentConfig()
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{_named(spec)}: its options cannot be read ({type(error).__name__})") from None


def _named(spec: str) -> str:
    """Return a specification as errors name it: without its options, because one may be a key by mistake."""
    return f"--judge {spec if spec.endswith(('.yaml', '.yml')) else spec.partition(':')[0]}"


def _yaml(file: str) -> dict:
    try:
        return OmegaConf.to_container(read_yaml(Path(file)))
    except UserError as error:
        raise UserError(f"--judge {file}: cannot be read: {error}") from None


def _encoder(name: str, store: Store) -> tuple[Callable, str]:
    """Return the function that embeds texts, and its hash. A missing encoder raises only when texts are embedded."""
    try:
        encoder = Encoder(name, store)
        return encoder.embed, encoder.hash
    except UserError as error:
        missing = error

        def embed(texts: Sequence[str]) -> NoReturn:
            raise missing

        return embed, "none"
