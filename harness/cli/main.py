"""The command line: python -m harness COMMAND."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from harness.cli.alpaca_lc import add_command as add_alpaca_lc
from harness.cli.judge import add_command as add_judge
from harness.cli.judge_check import add_command as add_judge_check
from harness.cli.plan import add_command as add_plan
from harness.core.errors import UserError
from harness.experiment.file import load_experiment
from losses import RegistryError

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
    except BrokenPipeError:  # the reader of our output has gone (| head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(options: argparse.Namespace) -> int:
    experiment = load_experiment(options.experiment, options.overrides)
    from harness.run.runner import run_experiment  # torch and transformers, only now

    return run_experiment(experiment, Console())


def _report(options: argparse.Namespace) -> int:
    for override in options.overrides:
        if override.partition("=")[0] not in ("name", "results"):
            raise UserError(
                f"override {override!r}: a report shows what the last run left; only name= and results= count"
            )
    experiment = load_experiment(options.experiment, options.overrides)
    from harness.reporting.report import print_leaderboard, write_report

    console = Console()
    print_leaderboard(write_report(experiment.folder), console)
    console.print(f"report in {experiment.folder}", highlight=False, markup=False)
    return 0


def _pretrain(options: argparse.Namespace) -> int:
    experiment = load_experiment(options.experiment, options.overrides, runs=False)
    if experiment.model.from_scratch is None:
        raise UserError(f"{options.experiment}: model.from_scratch is not there; it says what to train")
    from harness.backbones.language_model.pretraining import export, pretrained
    from harness.core.store import Store
    from harness.run.progress import Display

    console = Console()
    with Display(console, 1) as display, display.stage("model from scratch") as progress:
        artifact = pretrained(experiment.model.from_scratch, Store(experiment.store), progress)
    console.print(f"model in {artifact.path}", highlight=False, markup=False, soft_wrap=True)
    if options.into:
        words = [options.experiment, *options.overrides, "--into", options.into]
        export(artifact, Path(options.into), shlex.join(["python", "-m", "harness", "pretrain", *words]))
        console.print(f"copied to {options.into}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _losses(options: argparse.Namespace) -> int:
    from harness.conformance.catalogue import losses_as_dicts, losses_markdown, losses_table
    from harness.experiment.plugins import load_plugins

    load_plugins(options.plugin)
    if options.json:
        print(json.dumps(losses_as_dicts(), indent=2))
    elif options.markdown:
        print(losses_markdown(), end="")
    else:
        Console().print(losses_table())
    return 0


def _check(options: argparse.Namespace) -> int:
    from harness.conformance.outcomes import FAILED, outcome_table, summary_table
    from harness.conformance.suite import check_loss
    from harness.experiment.plugins import load_plugins, losses_of
    from losses import get_loss, list_losses

    if bool(options.targets) == options.all:
        raise UserError("name the losses or .py files to check, or give --all for every registered loss")
    load_plugins([target for target in options.targets if target.endswith(".py")])
    named = [name for target in options.targets for name in losses_of(target)]
    found = {name: check_loss(get_loss(name)) for name in named or list_losses()}
    console = Console()
    for table in [summary_table(found)] if options.all else [outcome_table(*item) for item in found.items()]:
        console.print(table)
    failed = [name for name, outcomes in found.items() if any(o.status == FAILED for o in outcomes)]
    said = f"failed: {', '.join(failed)}" if failed else "all checks passed"
    console.print(f"{len(found)} checked, {said}", highlight=False, markup=False)
    return 1 if failed else 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m harness",
        description="Compare preference-optimisation losses for language models: same start, data and budget.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def experiment_command(name: str, function, help: str, epilog: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=help, description=help, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("experiment", help="the experiment file (YAML)")
        command.add_argument(
            "overrides", nargs="*", metavar="key.path=value", help="overrides of the file, in OmegaConf's dotted form"
        )
        command.set_defaults(command=function)
        return command

    experiment_command(
        "run",
        _run,
        "Train, sample, judge and score what an experiment asks for and is not done yet; then write its report.",
        "examples:\n"
        "  python -m harness run experiments/rpo_vs_dpo.yaml\n"
        "  python -m harness run experiments/rpo_vs_dpo.yaml name=longer train.epochs=2 seeds=[0,1]\n\n"
        "exit status: 0 all cells are there, 1 a cell failed, 2 something must be changed first",
    )
    experiment_command(
        "report",
        _report,
        "Rebuild leaderboard, tables and plots from what the runs left. Needs no torch, GPU or key.",
        "example:\n  python -m harness report experiments/rpo_vs_dpo.yaml",
    )
    pretrain = experiment_command(
        "pretrain",
        _pretrain,
        "Train the model that an experiment's model.from_scratch describes. (A run does it by itself.)",
        "examples:\n"
        "  python -m harness pretrain experiments/assets/tiny_imdb.yaml\n"
        "  python -m harness pretrain experiments/assets/tiny_imdb.yaml --into harness/backbones/language_model/tiny-imdb",
    )
    pretrain.add_argument(
        "--into", metavar="FOLDER", help="copy the model there, with a README that says how it was made"
    )
    listing = commands.add_parser(
        "losses",
        help="List the registered losses.",
        description="List the registered losses: paper, data, needs, reduction, hyper-parameters with default and grid.",
        epilog="examples:\n"
        "  python -m harness losses\n"
        "  python -m harness losses --plugin my_loss.py --json\n"
        "  python -m harness losses --markdown > docs/losses.md",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    form = listing.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument("--markdown", action="store_true", help="print the page that docs/losses.md is")
    listing.add_argument(
        "--plugin", action="append", default=[], metavar="FILE", help="a Python file that registers losses"
    )
    listing.set_defaults(command=_losses)
    check = commands.add_parser(
        "check",
        help="Hold losses to the conformance suite.",
        description="Hold losses to what they declare and to what training relies on: values at the start, gradients,\n"
        "extremes, signs, order, micro-batches, needs, reduction, hyper-parameters.",
        epilog="examples:\n"
        "  python -m harness check my_loss.py\n"
        "  python -m harness check dpo rpo_paired\n"
        "  python -m harness check --all\n\n"
        "exit status: 0 all passed, 1 a check failed, 2 something must be changed first",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("targets", nargs="*", metavar="TARGET", help="a registered loss, or a Python file of losses")
    check.add_argument("--all", action="store_true", help="every registered loss, those of installed packages included")
    check.set_defaults(command=_check)
    add_plan(experiment_command)
    add_judge(commands)
    add_judge_check(commands)
    add_alpaca_lc(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
