"""The command line: its parser, and the exit status for each kind of error."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from harness.cli import (
    alpaca_lc,
    check,
    export,
    judge,
    judge_check,
    losses,
    plan,
    pretrain,
    report,
    run,
    show,
    status,
    verify,
)
from harness.core.errors import UserError
from losses import RegistryError

COMMANDS = (run, status, report, show, export, verify, plan, pretrain, losses, check, judge, judge_check, alpaca_lc)
DESCRIPTION = """Compare preference-optimisation losses for language models: same start, data and budget.
A cell is one policy of an experiment: one loss with one choice of settings, one seed, trained on one task."""
INTERRUPTED = 130  # what shells report for a command ended by Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0, 1 for failed cells, 2 for what the user must change."""
    options = parser().parse_args(arguments)
    try:
        return options.command(options)
    except (UserError, RegistryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept, the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the output has closed it, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m harness",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    return parser
