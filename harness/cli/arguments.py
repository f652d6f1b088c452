"""Shared by the commands: adding a command, and the arguments that name an experiment or a cell."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from harness.core.config import ExperimentConfig
from harness.core.errors import UserError
from harness.experiment.file import load_experiment

Handler = Callable[[argparse.Namespace], int]  # returns the exit status
OF_RESULTS = ("name", "results")  # the keys that locate results


def home(text: str) -> str:
    """Return a path with `~` replaced by the home folder: shells replace it at the start of a word alone."""
    return os.path.expanduser(text)


def home_path(text: str) -> Path:
    """Return what `home` does, as a path."""
    return Path(home(text))


def add_command(
    commands: argparse._SubParsersAction, name: str, handler: Handler, help: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    """Add a command; its epilog, with worked examples, is shown as it is written."""
    command = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(command=handler)
    return command


def add_experiment_command(
    commands: argparse._SubParsersAction, name: str, handler: Handler, help: str, epilog: str
) -> argparse.ArgumentParser:
    """Add a command that takes an experiment file and overrides of its keys."""
    command = add_command(commands, name, handler, help, help, epilog)
    command.add_argument("experiment", type=home, help="the experiment file (YAML)")
    command.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="overrides of the file, in OmegaConf's dotted form"
    )
    return command


def add_cell_command(
    commands: argparse._SubParsersAction, name: str, handler: Handler, help: str, epilog: str
) -> argparse.ArgumentParser:
    """Add a command that takes a cell, named in any way that `harness.reporting.find_cell` understands."""
    command = add_command(commands, name, handler, help, help, epilog)
    command.add_argument(
        "cell",
        metavar="CELL",
        help="a key, the beginning of one, or task/loss/settings/seed (the last parts may be left out)",
    )
    command.add_argument(
        "--results",
        type=home,
        default="results",
        metavar="FOLDER",
        help="the folder of all results (default: results)",
    )
    command.add_argument(
        "--experiment", default="", metavar="NAME", help="look in the results of this experiment alone"
    )
    return command


def graded_line(share: float | None) -> dict[str, str]:
    """Return the line on how many verdicts log-probs grade, as both commands that judge print it; empty if unknown."""
    return (
        {} if share is None else {"graded": f"{100 * share:.1f} % of the verdicts, by log-probs; the others are 0 or 1"}
    )


def experiment_of_results(options: argparse.Namespace) -> ExperimentConfig:
    """Return the experiment whose results a command reads.

    Raises `UserError` for overrides of keys other than `OF_RESULTS`, because they would have no effect.
    """
    for override in options.overrides:
        if override.partition("=")[0] not in OF_RESULTS:
            raise UserError(f"override {override!r}: what the last run left is shown; only name= and results= count")
    return load_experiment(options.experiment, options.overrides)
