"""The driver of a run: plans, runs every cell, and writes the report. A failed cell does not stop the others."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from harness.backbones.language_model.from_scratch import MODEL, pretrained
from harness.core.config import ExperimentConfig
from harness.core.duration import duration_text
from harness.core.records import Failure
from harness.core.terminal import Terminal, complain
from harness.core.user_code import user_code
from harness.experiment.draft import Draft, draft_plan
from harness.experiment.plan import Plan
from harness.reporting.mixed import mixed_lines
from harness.reporting.report import print_leaderboard, write_report
from harness.run.announce import announcement
from harness.run.cell import run_cell
from harness.run.manifest import write_manifest
from harness.run.plan_file import write_plan
from harness.run.progress import Display, plan_with_progress
from harness.run.stages.train import is_trained
from harness.run.worker import Worker
from harness.training.processes import AloneError


def run_experiment(experiment: ExperimentConfig, console: Terminal) -> int:
    """Run what is not done yet, write the report and print the leaderboard; return the exit status.

    0: every cell is complete; 1: a cell failed (the reasons are in its rows and its `failures.jsonl`) or a judgement is
    missing. `UserError` and `RegistryError` are raised before anything is trained, except for a model from scratch.
    """
    started = time.monotonic()
    console.quiet = console.quiet or os.environ.get("RANK", "0") != "0"  # set by launchers of several processes
    draft = draft_plan(experiment)
    plan = plan_with_progress(draft, draft.model or _model_from_scratch(draft, console), console)
    worker = Worker(plan)
    main = worker.accelerator.is_main_process  # only this process prints, and writes what is not an artifact
    console.quiet = console.quiet or not main
    todo = [cell for cell in plan.cells if not is_trained(worker, cell)]
    if todo:
        worker.check_model()
    for line in announcement(plan, worker, len(todo)):
        console.say(line)
    try:
        with Display(console, len(plan.cells)) as display:
            judges = _make_judges(plan, worker, display)
            if main:
                _write_plan_and_manifest(plan, judges, bool(todo), display)
            failures = _run_cells(plan, worker, display)
    except AloneError as error:
        complain(f"error: {error}; the run ends: start it again to go on from here")
        return 1
    worker.accelerator.wait_for_everyone()
    if main:
        print_leaderboard(write_report(experiment.folder, figures=experiment.figures), console)
        for line in mixed_lines(experiment.folder):
            console.say(f"warning: {line}", style="yellow")
    console.say(f"results in {experiment.folder} after {duration_text(time.monotonic() - started)}")
    for label, failure in failures:
        console.say(f"failed: {label}: {failure.where}: {failure.reason}", style="red")
    for line in worker.unjudged:
        console.say(f"incomplete: {line}", style="yellow")
    return 1 if failures or worker.unjudged else 0


def _model_from_scratch(draft: Draft, console: Terminal) -> Path:
    """Train the model that an experiment starts from. It is the first stage, because cells depend on its tokenizer."""
    with Display(console, 1) as display, display.stage("model from scratch") as progress:
        return pretrained(draft.experiment.model.from_scratch, draft.store, progress).path / MODEL


def _make_judges(plan: Plan, worker: Worker, display: Display) -> dict[str, str]:
    """Make every judge before anything is trained, so that a missing requirement is reported at once.

    Return their ids by training task, task and name.
    """
    ids = {}
    for trained_on, tasks in plan.resolved.evaluated_on.items():
        for task in tasks:
            for judge in plan.resolved.judges_of(task):
                words = f"{task}: {' '.join(filter(None, ('judge', judge.name)))}"
                with display.stage(words), user_code(words, judge.kind.make.__module__):
                    ids[f"{trained_on}/{task}/{judge.name}"] = worker.judge(trained_on, task, judge.name).id
    return ids


def _write_plan_and_manifest(plan: Plan, judges: Mapping[str, str], computes: bool, display: Display) -> None:
    folder = plan.experiment.folder
    folder.mkdir(parents=True, exist_ok=True)
    for line in write_plan(plan, judges, folder).lines:
        display.line(line)
    write_manifest(plan, folder, computes)


def _run_cells(plan: Plan, worker: Worker, display: Display) -> list[tuple[str, Failure]]:
    """Run every cell; return each failure with the label of its cell."""
    failures = []
    for cell in plan.cells:
        try:
            failed = run_cell(plan, cell.key, worker, display.stage)
        except AloneError as error:
            display.line(f"{cell.label}: failed: {error}")
            raise
        for failure in failed:
            failures.append((cell.label, failure))
            display.line(f"{cell.label}: {failure.where} failed: {failure.reason}")
        display.cell_done()
    return failures
