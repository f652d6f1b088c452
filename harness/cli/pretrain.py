"""The command `pretrain`: trains the model that an experiment would train from scratch, and nothing else."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from harness.cli.arguments import add_experiment_command, home
from harness.core.errors import UserError
from harness.core.places import check_new_folder, check_results
from harness.core.terminal import Terminal
from harness.experiment.file import load_experiment

HELP = "Train the model that an experiment's model.from_scratch describes. (A run does it by itself.)"
EPILOG = """examples:
  python -m harness pretrain experiments/assets/tiny_imdb.yaml
  python -m harness pretrain experiments/assets/tiny_imdb.yaml --into harness/backbones/language_model/tiny-imdb

exit status: 0 the model is there, 2 something must be changed first"""


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    command = add_experiment_command(commands, "pretrain", run, HELP, EPILOG)
    command.add_argument(
        "--into", type=home, metavar="FOLDER", help="copy the model there, with a README that says how it was made"
    )


def run(options: argparse.Namespace) -> int:
    """Train the model unless the store has it, and copy it to the requested folder."""
    experiment = load_experiment(options.experiment, options.overrides, runs=False)
    if experiment.model.from_scratch is None:
        raise UserError(f"{options.experiment}: model.from_scratch is not there; it says what to train")
    from harness.backbones.language_model.from_scratch import export, pretrained
    from harness.core.store import Store
    from harness.run.progress import Display

    check_results(experiment.store)
    if options.into:
        check_new_folder(Path(options.into), "--into")
    console = Terminal()
    with Display(console, 1) as display, display.stage("model from scratch") as progress:
        artifact = pretrained(experiment.model.from_scratch, Store(experiment.store), progress)
    console.say(f"model in {artifact.path}")
    if options.into:
        words = [options.experiment, *options.overrides, "--into", options.into]
        export(artifact, Path(options.into), shlex.join(["python", "-m", "harness", "pretrain", *words]))
        console.say(f"copied to {options.into}")
    return 0
