"""Executes a plan: every stage that is not done yet, then the report. A failed cell fails alone."""

from __future__ import annotations

import time
import traceback
from collections import Counter

from rich.console import Console
from rich.markup import escape

from harness.core.config import ExperimentConfig
from harness.core.duration import duration_text
from harness.core.errors import UserError
from harness.core.record_files import write_record
from harness.core.records import JUDGE, MEASURE, SAMPLE, SFT, TRAIN, Failure, stage_folder
from harness.core.store import find_artifact, write_json
from harness.experiment.cells import Cell
from harness.experiment.plan import Plan, make_plan
from harness.reporting.report import print_leaderboard, write_report
from harness.run.manifest import describe_run
from harness.run.progress import Display
from harness.run.stages import Stages
from harness.training.processes import AloneError
from losses import RegistryError


def run_experiment(experiment: ExperimentConfig, console: Console) -> int:
    """Run what is not done yet, write the report and print the leaderboard; return the exit status.

    0: every cell is there; 1: a cell failed (the reason is in its row and its `failed.json`). `UserError` and
    `RegistryError` are raised before anything is trained.
    """
    started = time.monotonic()
    if experiment.model.from_scratch:
        with Display(console, 1) as display, display.stage("model from scratch") as progress:
            plan = make_plan(experiment, progress)
    else:
        plan = make_plan(experiment)
    stages = Stages(plan)
    main = stages.accelerator.is_main_process  # of several, one speaks and writes what is not an artifact
    console.quiet = console.quiet or not main
    todo = [cell for cell in plan.cells if not is_trained(stages, cell)]
    if todo:
        stages.shared.check_model()
    _announce(plan, stages, len(todo), console)
    with Display(console, len(plan.cells)) as display:
        _make_judges(plan, stages, display)
        experiment.folder.mkdir(parents=True, exist_ok=True)
        write_record(experiment.folder, plan.description())
        if todo or not (experiment.folder / "manifest.json").exists():
            write_json(experiment.folder / "manifest.json", describe_run(plan))
        failures = _run_cells(plan, stages, display)
    stages.accelerator.wait_for_everyone()
    if main:
        print_leaderboard(write_report(experiment.folder), console)
    console.print(
        f"results in {escape(str(experiment.folder))} after {duration_text(time.monotonic() - started)}",
        highlight=False,
        soft_wrap=True,
    )
    for label, reason in failures.items():
        console.print(f"failed: {escape(label)}: {escape(reason)}", highlight=False, style="red", soft_wrap=True)
    return 1 if failures else 0


def is_trained(stages: Stages, cell: Cell) -> bool:
    """Whether a cell's policy is there (its later stages check themselves)."""
    return find_artifact(stages.folder(cell) / TRAIN, cell.inputs) is not None


def _announce(plan: Plan, stages: Stages, todo: int, console: Console) -> None:
    """Say what the run will do before it does it."""
    experiment = plan.experiment
    losses = Counter(cell.loss for cell in plan.cells if cell.loss != SFT)
    lines = [
        f"experiment {experiment.name}: {len(plan.cells)} cells ({len(plan.cells) - todo} already trained)",
        f"  model   {_model_name(experiment)}, training {_tuned(plan)}, {experiment.model.dtype}, on {stages.accelerator.device}"
        + (f" x {stages.accelerator.num_processes}" if stages.accelerator.num_processes > 1 else ""),
        f"  losses  {', '.join(losses)}, and the SFT policy as a row of its own; seeds {experiment.seeds}",
    ]
    for name, prepared in stages.shared.prepared.items():
        sizes = [f"{len(split.examples)} {kind}" for kind, split in prepared.splits.items()]
        sizes.append(f"{len(prepared.questions)} test prompts against {plan.tasks[name].task.baseline}")
        cut = {k: v for k, v in prepared.counts.items() if v and ("truncated" in k or "too long" in k)}
        notes = "; ".join(f"{what}: {count}" for what, count in cut.items())
        lines.append(f"  {name:<7} {', '.join(sizes)}" + (f" ({notes})" if notes else ""))
    if plan.trunk_bytes:
        size = f"{plan.trunk_bytes / 1e9:.2g} GB of activations, computed once for all cells"
        lines.append(f"  frozen  {size}, in {plan.store.root}")
    if todo and (reason := stages.shared.check_model()):
        lines.append(f"  rows    every completion with a prompt of its own, not shared: {reason}")
    judges = (
        f"{judge.name} ({judge.kind.name})" if judge.name else judge.kind.name
        for judge in plan.resolved.judges.values()
    )
    lines.append(f"  judge   {', '.join(judges)}")
    for line in lines:
        console.print(escape(line), highlight=False, soft_wrap=True)


def _model_name(experiment: ExperimentConfig) -> str:
    scratch = experiment.model.from_scratch
    return experiment.model.name if scratch is None else f"from scratch ({scratch.layers} layers of {scratch.hidden})"


def _tuned(plan: Plan) -> str:
    model = plan.experiment.model
    return {
        "full": "all weights",
        "lora": f"LoRA of rank {model.lora.rank}",
        "last_layers": f"the last {model.last_layers} layers",
    }[model.tune]


def _make_judges(plan: Plan, stages: Stages, display: Display) -> None:
    """Make every judge before anything is trained: what it lacks is said now, not after hours."""
    for trained_on, tasks in plan.resolved.evaluated_on.items():
        for task in tasks:
            for judge in plan.resolved.judges_of(task):
                with display.stage(f"{task}: {' '.join(filter(None, ('judge', judge.name)))}"):
                    stages.judge_of(trained_on, task, judge.name)


def _run_cells(plan: Plan, stages: Stages, display: Display) -> dict[str, str]:
    """Bring every cell to its end; return the reasons of those that failed, by label."""
    failures: dict[str, str] = {}
    broken: dict[str, Exception] = {}  # a task whose shared stages failed fails each of its cells, once tried
    for cell in plan.cells:
        failure = stages.folder(cell) / Failure.FILE
        failure.unlink(missing_ok=True)
        stage = "sft"
        try:
            if cell.task in broken:
                raise broken[cell.task]
            if not is_trained(stages, cell):
                try:
                    _run_shared(cell.task, stages, display)
                except Exception as error:
                    broken[cell.task] = error
                    raise
            stages.folder(cell).mkdir(parents=True, exist_ok=True)
            write_record(stages.folder(cell), plan.describe(cell))
            stage = TRAIN
            with display.stage(f"{cell.label}: train") as progress:
                stages.train(cell, progress)
            for task in cell.evaluated_on:
                stage = stage_folder(SAMPLE, task)
                with display.stage(f"{cell.label}: sample {task}") as progress:
                    stages.sample(cell, task, progress)
                stage = stage_folder(MEASURE, task)
                with display.stage(f"{cell.label}: measure {task}") as progress:
                    stages.measure(cell, task, progress)
                errors = _judge_by_all(plan, stages, display, cell, task)
                if errors:
                    stage, error = next(iter(errors.items()))
                    raise error
        except Exception as error:  # whatever a cell does wrong is its own; the others go on
            reason = _reason(error)
            failures[cell.label] = f"{stage}: {reason}"
            display.line(f"{cell.label}: {stage} failed: {reason}")
            alone = isinstance(error, AloneError)
            if not (alone and failure.exists()):  # once one process is gone the others fail too: its reason counts
                failure.parent.mkdir(parents=True, exist_ok=True)
                details = "".join(traceback.format_exception(error))
                write_json(failure, {"stage": stage, "reason": reason, "traceback": details})
            if alone:
                raise SystemExit(f"error: {reason}; the run ends: start it again to go on from here") from None
        display.cell_done()
    return failures


def _reason(error: Exception) -> str:
    """Return an error in one line."""
    if isinstance(error, (UserError, RegistryError, AloneError)):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]


def _judge_by_all(plan: Plan, stages: Stages, display: Display, cell: Cell, task: str) -> dict[str, Exception]:
    """Have every judge of a task judge a cell; one that fails does not stop the others. Return the errors by stage."""
    errors: dict[str, Exception] = {}
    for judge in plan.resolved.judges_of(task):
        stage = stage_folder(JUDGE, task, judge.name)
        try:
            with display.stage(f"{cell.label}: judge {stage.partition('-')[2]}") as progress:
                stages.judge(cell, task, judge.name, progress)
        except Exception as error:  # the other judges' tables are none of its business
            errors[stage] = error
    return errors


def _run_shared(task: str, stages: Stages, display: Display) -> None:
    """Make what all cells of a task share: the frozen layers' activations, SFT, the reference's log-probs."""
    with display.stage(f"{task}: SFT") as progress:
        stages.shared.sft(task, progress)
    with display.stage(f"{task}: preferences") as progress:
        stages.shared.preferences(task, progress)
    for split in stages.shared.prepared[task].splits:
        with display.stage(f"{task}: frozen layers, {split}") as progress:
            stages.shared.source(task, split, progress)
    for split in stages.shared.prepared[task].splits:
        with display.stage(f"{task}: reference log-probs, {split}") as progress:
            stages.shared.reference(task, split, progress)
