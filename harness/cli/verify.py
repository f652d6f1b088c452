"""The command `verify`: checks every file of a results folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cli.arguments import add_command, home
from harness.core.terminal import Terminal

HELP = "Check every stored file: sizes, hashes, keys and rows. Needs no torch, GPU or key."
EPILOG = """examples:
  python -m harness verify
  python -m harness verify results/rpo_vs_dpo

It reads and hashes every file of the experiments and of what they share, and says each fault in one line with what to
do. It mends nothing. Runs and reports check what they use themselves, and hash a file only if its size or times have
changed; this command also finds damage that leaves those as they were, on a failing disk for example.

exit status: 0 everything is as it was written, 1 something is damaged, 2 something must be changed first"""


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    command = add_command(commands, "verify", run, HELP, HELP, EPILOG)
    command.add_argument(
        "results",
        type=home,
        nargs="?",
        default="results",
        metavar="RESULTS",
        help="the folder of all results, or that of one experiment (default: results)",
    )


def run(options: argparse.Namespace) -> int:
    """Check a results folder and print what is wrong."""
    from harness.reporting.verify import verify

    console, artifacts, damaged = Terminal(), 0, 0
    for finding in verify(Path(options.results)):
        if finding is None:
            artifacts += 1
            continue
        damaged += finding.damage
        what, style = ("damaged", "red") if finding.damage else ("left over", "yellow")
        console.say(f"{what}: {finding}", style=style)
    told = f"faults: {damaged}" if damaged else "nothing is damaged"
    console.say(f"{options.results}: {artifacts} artifacts checked; {told}")
    return 1 if damaged else 0
