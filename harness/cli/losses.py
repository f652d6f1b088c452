"""The command `losses`: lists the registered losses."""

from __future__ import annotations

import argparse
import json

from harness.cli.arguments import add_command
from harness.core.terminal import Terminal

DESCRIPTION = "List the registered losses: paper, data, needs, reduction, hyper-parameters with default and grid."
EPILOG = """examples:
  python -m harness losses
  python -m harness losses --plugin my_loss.py --json
  python -m harness losses --markdown > docs/losses.md

exit status: 0 listed, 2 something must be changed first"""


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    command = add_command(commands, "losses", run, "List the registered losses.", DESCRIPTION, EPILOG)
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument("--markdown", action="store_true", help="print the page that docs/losses.md is")
    command.add_argument(
        "--plugin", action="append", default=[], metavar="FILE", help="a Python file that registers losses"
    )


def run(options: argparse.Namespace) -> int:
    """Print the registered losses."""
    from harness.conformance.catalogue import losses_as_dicts, losses_markdown, losses_table
    from harness.experiment.plugins import load_plugins

    load_plugins(options.plugin)
    if options.json:
        Terminal().lines(json.dumps(losses_as_dicts(), indent=2))
    elif options.markdown:
        Terminal().lines(losses_markdown().removesuffix("\n"))
    else:
        Terminal().print(losses_table())
    return 0
