"""The command line: its parser, and the exit status for each kind of error."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

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
from harness.core.errors import UserError, one_line
from harness.core.secrets import masked
from harness.core.terminal import complain, show_traceback, warning_line
from losses import RegistryError

COMMANDS = (run, status, report, show, export, verify, plan, pretrain, losses, check, judge, judge_check, alpaca_lc)
DESCRIPTION = """Compare preference-optimisation losses for language models: same start, data and budget.
A cell is one policy of an experiment: one loss with one choice of settings, one seed, trained on one task."""
INTERRUPTED = 130  # what shells report for a command ended by Ctrl-C


class Parser(argparse.ArgumentParser):
    """argparse's parser, with errors on one line: an argument that it quotes may have been pasted."""

    def error(self, message: str) -> NoReturn:
        super().error(one_line(masked(message)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0, 1 for failed cells, 2 for what the user must change."""
    warnings.formatwarning = warning_line
    options = parser().parse_args(arguments)
    try:
        return options.command(options)
    except (UserError, RegistryError) as error:
        complain(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        complain("interrupted: what was finished is kept, the same command goes on from there")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the output has closed it, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a disk that is full by now, a folder that went away
        complain(f"error: {error}; what was finished is kept, the same command goes on from there")
        return 2
    except BaseException as error:  # SystemExit too: code of others must not end a command as if it were done
        show_traceback(error)
        return 1


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="python -m harness",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    return parser
