"""The command `check`: runs the conformance suite on losses."""

from __future__ import annotations

import argparse

from harness.cli.arguments import add_command, home
from harness.core.errors import UserError
from harness.core.terminal import Terminal

DESCRIPTION = """Hold losses to what they declare and to what training relies on: values at the start, gradients,
extremes, signs, order, micro-batches, needs, reduction, hyper-parameters."""
EPILOG = """examples:
  python -m harness check my_loss.py
  python -m harness check dpo rpo_paired
  python -m harness check --all

exit status: 0 all passed, 1 a check failed, 2 something must be changed first"""


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    command = add_command(commands, "check", run, "Hold losses to the conformance suite.", DESCRIPTION, EPILOG)
    command.add_argument(
        "targets", type=home, nargs="*", metavar="TARGET", help="a registered loss, or a Python file of losses"
    )
    command.add_argument(
        "--all", action="store_true", help="every registered loss, those of installed packages included"
    )


def run(options: argparse.Namespace) -> int:
    """Check the losses and print the outcomes; the exit status says whether all passed."""
    if bool(options.targets) == options.all:
        raise UserError("name the losses or .py files to check, or give --all for every registered loss")
    from harness.conformance.outcomes import FAILED, outcome_table, summary_table
    from harness.conformance.suite import check_loss
    from harness.experiment.plugins import load_plugins, losses_of
    from losses import get_loss, list_losses

    load_plugins([target for target in options.targets if target.endswith(".py")])
    named = [name for target in options.targets for name in losses_of(target)]
    outcomes_of = {name: check_loss(get_loss(name)) for name in named or list_losses()}
    console = Terminal()
    for table in (
        [summary_table(outcomes_of)] if options.all else [outcome_table(*item) for item in outcomes_of.items()]
    ):
        console.print(table)
    failed = [name for name, outcomes in outcomes_of.items() if any(o.status == FAILED for o in outcomes)]
    verdict = f"failed: {', '.join(failed)}" if failed else "all checks passed"
    console.say(f"{len(outcomes_of)} checked, {verdict}")
    return 1 if failed else 0
