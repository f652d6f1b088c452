"""The command `status`: prints the progress of an experiment, also while another process runs it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from harness.cli.arguments import add_experiment_command, experiment_of_results
from harness.core.duration import duration_text
from harness.core.errors import one_line
from harness.core.terminal import Terminal

if TYPE_CHECKING:
    from harness.core.builds import Build
    from harness.reporting.status import CellStatus, Status

HELP = "Say what of an experiment is done, under way, failed (and why), and how long is left."
EPILOG = """examples:
  python -m harness status experiments/rpo_vs_dpo.yaml
  python -m harness status experiments/rpo_vs_dpo.yaml name=longer --json

It reads the results folder alone: the plan of the last run, and what its cells hold. It needs no torch, GPU or key, and
can be asked while the experiment runs, on another machine too where both see the folder. A stage is under way where a
process holds its lock. The time left is the median time of the same stage of the same task so far, for one process.

exit status: 0 shown, 2 something must be changed first"""
COLORS = {"done": "green", "under way": "yellow", "failed": "red"}
PIPED_WIDTH = 120  # characters


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    command = add_experiment_command(commands, "status", run, HELP, EPILOG)
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Print the status of an experiment."""
    experiment = experiment_of_results(options)
    from harness.reporting.status import experiment_status

    status = experiment_status(experiment.folder)
    console = Terminal(piped_width=PIPED_WIDTH)
    if options.json:
        console.lines(json.dumps(status_as_json(status), indent=2))
        return 0
    for part in status_parts(status):
        console.print(part, soft_wrap=isinstance(part, Text))
    return 0


def status_as_json(status: Status) -> dict:
    """Return the status as JSON values; times in seconds."""
    return {
        "experiment": status.experiment,
        "cells": {state: status.count(state) for state in ("done", "under way", "failed", "to do")},
        "seconds_left": status.seconds_left,
        "left": [asdict(left) for left in status.left],
        "shared": [asdict(one) for one in status.shared],
        "under_way_in_store": {name: asdict(build) for name, build in status.in_store.items()},
        "each": [
            {
                "key": one.cell.key,
                "label": one.cell.label,
                "state": one.state,
                "stages": [asdict(stage) for stage in one.stages],
                "failures": [{"where": failure.where, "reason": failure.reason} for failure in one.failures],
            }
            for one in status.cells
        ],
    }


def status_parts(status: Status) -> list[Text | Table]:
    """Return the status for a person: a headline, a table by task and loss, then what is under way, failed and left."""
    shared = [f"shared: {name}, {_building(build)}" for name, build in status.in_store.items()]
    if not status.cells:
        headline = f"experiment {status.experiment}: no plan yet, which a run writes once its judges are made"
        return [Text(headline, style="bold"), *_section("under way", shared, "yellow")]
    counts = [f"{status.count('done')} of {len(status.cells)} cells done"]
    counts += [f"{status.count(state)} {state}" for state in ("under way", "failed", "to do") if status.count(state)]
    parts: list[Text | Table] = [
        Text(f"experiment {status.experiment}: {', '.join(counts)}", style="bold"),
        _table(status),
    ]
    failed = [
        f"{one.cell.label}: {failure.where}: {failure.reason}  ({one.cell.key})"
        for one in status.cells
        for failure in one.failures
        if one.state == "failed"
    ]
    parts += _section("under way", [*_builds(status, running=True), *shared], "yellow")
    parts += _section("interrupted; the next run goes on from there", _builds(status, running=False), "yellow")
    parts += _section("damaged; the next run makes them anew", _damaged(status), "red")
    parts += _section("failed; the next run tries them again", failed, "red")
    return [*parts, *_left(status)]


def _table(status: Status) -> Table:
    from harness.reporting.status import STAGES

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    groups: dict[tuple[str, str], list[CellStatus]] = {}
    for one in status.cells:
        groups.setdefault((one.cell.task, one.cell.loss), []).append(one)
    stages = [name for name in STAGES if any(s.stage == name for one in status.cells for s in one.stages)]
    for header in ("task", "loss", "cells", *stages, "state"):
        table.add_column(
            header, justify="left" if header in ("task", "loss", "state") else "right", no_wrap=header != "state"
        )
    for (task, loss), cells in groups.items():
        counts = [_count(cells, stage) for stage in stages]
        table.add_row(Text(one_line(task)), Text(one_line(loss)), str(len(cells)), *counts, _states(cells))
    return table


def _count(cells: Sequence[CellStatus], stage: str) -> str:
    states = [s.state for one in cells for s in one.stages if s.stage == stage]
    return f"{states.count('done')}/{len(states)}" if states else "-"


def _states(cells: Sequence[CellStatus]) -> Text:
    states = [one.state for one in cells]
    counts = [(state, states.count(state)) for state in ("done", "under way", "failed", "to do") if state in states]
    if len(counts) == 1:
        return Text(counts[0][0], style=COLORS.get(counts[0][0], ""))
    return Text(", ").join(Text(f"{count} {state}", style=COLORS.get(state, "")) for state, count in counts)


def _section(title: str, lines: Sequence[str], style: str) -> list[Text]:
    return [Text(f"{title}:", style=style), *(Text(f"  {one_line(line)}") for line in lines), Text("")] if lines else []


def _builds(status: Status, *, running: bool) -> list[str]:
    """Return a line for each stage whose build runs, or was interrupted."""
    return [
        f"{one.cell.label}: {stage.name}, {_building(stage.build)}  ({one.cell.key})"
        for one in status.cells
        for stage in one.stages
        if stage.build and stage.build.running == running and stage.state != "done"
    ]


def _damaged(status: Status) -> list[str]:
    return [
        f"{one.cell.label}: {stage.name}: {stage.damage}  ({one.cell.key})"
        for one in status.cells
        for stage in one.stages
        if stage.damage
    ]


def _building(build: Build) -> str:
    parts = [f"for {duration_text(build.seconds)}"] if build.running else []
    parts.append(f"last write {duration_text(build.idle)} ago")
    if build.step is not None:
        parts.append(f"newest checkpoint at step {build.step}")
    return ", ".join(parts)


def _left(status: Status) -> list[Text]:
    if not status.left:
        return [Text("nothing is left to do")]
    total = status.seconds_left
    known = sum(left.seconds or 0.0 for left in status.left)
    headline = f"about {duration_text(total)}" if total is not None else "not known yet"
    if total is None and known:
        headline += f", more than {duration_text(known)}"
    lines = [Text(f"left: {headline}, by one process", style="bold")]
    for left in status.left:
        time = (
            "never measured"
            if left.seconds is None
            else f"{duration_text(left.seconds)} in all, by the median of {left.measured}"
        )
        lines.append(Text(f"  {one_line(left.task)}: {one_line(left.name)} x {left.count}: {time}"))
    return lines
