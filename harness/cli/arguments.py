"""What the commands share: how one is added to the command line, and the arguments that name an experiment."""

from __future__ import annotations

import argparse
from collections.abc import Callable

Handler = Callable[[argparse.Namespace], int]  # returns the exit status


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
    command.add_argument("experiment", help="the experiment file (YAML)")
    command.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="overrides of the file, in OmegaConf's dotted form"
    )
    return command
