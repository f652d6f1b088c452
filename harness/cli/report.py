"""The command `report`: rebuilds tables and plots from stored results."""

from __future__ import annotations

import argparse

from harness.cli.arguments import add_experiment_command, experiment_of_results
from harness.core.terminal import Terminal

HELP = "Rebuild leaderboard, tables and plots from what the runs left. Needs no torch, GPU or key."
EPILOG = """example:
  python -m harness report experiments/rpo_vs_dpo.yaml

exit status: 0 written, 2 something must be changed first"""


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    add_experiment_command(commands, "report", run, HELP, EPILOG)


def run(options: argparse.Namespace) -> int:
    """Write and print the report of an experiment."""
    experiment = experiment_of_results(options)
    from harness.reporting.mixed import mixed_lines
    from harness.reporting.report import print_leaderboard, write_report

    console = Terminal()
    print_leaderboard(write_report(experiment.folder), console)
    for line in mixed_lines(experiment.folder):
        console.say(f"warning: {line}", style="yellow")
    console.say(f"report in {experiment.folder}")
    return 0
