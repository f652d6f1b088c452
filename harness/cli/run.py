"""The command `run`: trains, samples, judges and scores what an experiment asks for, then writes its report."""

from __future__ import annotations

import argparse

from harness.cli.arguments import add_experiment_command
from harness.core.terminal import Terminal
from harness.experiment.file import load_experiment

HELP = "Train, sample, judge and score what an experiment asks for and is not done yet; then write its report."
EPILOG = """examples:
  python -m harness run experiments/rpo_vs_dpo.yaml
  python -m harness run experiments/rpo_vs_dpo.yaml name=longer train.epochs=2 seeds=[0,1]

Every key of an experiment file is documented in harness/core/config.py; README.md has an example with the main ones.
exit status: 0 all is there, 1 a cell failed or a judgement is missing, 2 something must be changed first"""


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    add_experiment_command(commands, "run", run, HELP, EPILOG)


def run(options: argparse.Namespace) -> int:
    """Run an experiment."""
    experiment = load_experiment(options.experiment, options.overrides)
    from harness.run.runner import run_experiment  # imports torch and transformers

    return run_experiment(experiment, Terminal())
