"""The command `export`: writes a trained policy as a folder that plain transformers code loads."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from harness.cli.arguments import add_cell_command, home
from harness.core.errors import UserError
from harness.core.terminal import Terminal

HELP = "Write a trained policy as a Hugging Face model folder (or a peft adapter), with a model card."
EPILOG = """examples:
  python -m harness export KEY --into my-policy
  python -m harness export hh/rpo_paired --experiment rpo_vs_dpo --into my-policy
  python -m harness export "sentiment/dpo/beta=1.0/0" --at 0.5 --into my-policy
  python -m harness export hh/sft --adapter --into my-adapter

CELL is a key as leaderboard.csv and `status` print it, the beginning of one, or task/loss/settings/seed. The folder
holds safetensors weights, tokenizer, generation settings, the experiment's file, and a card with data, loss, settings,
budget and results. LoRA adapters are merged in fp32, and all weights written in the dtype of the base model's files;
how far this moves log-probs of random tokens from those of the trained weights in fp32 is measured and said (--dtype
float32 keeps every digit).
exit status: 0 done, 2 something must be changed first"""


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    command = add_cell_command(commands, "export", run, HELP, EPILOG)
    command.add_argument(
        "--into", type=home, required=True, metavar="FOLDER", help="a folder that is not there or empty"
    )
    command.add_argument("--at", type=float, metavar="SHARE", help="the policy kept after this share (train.keep_at)")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--adapter", action="store_true", help="with LoRA: a peft adapter in place of merged weights")
    form.add_argument("--dtype", default="", choices=("float32", "bfloat16", "float16"), help="of the weights")
    command.add_argument(
        "--model", type=home, default="", metavar="FOLDER", help="where the base model is, if it was moved"
    )


def run(options: argparse.Namespace) -> int:
    """Export a policy; print where it is and how close its log-probs are to the trained policy's."""
    from harness.reporting.find_cell import find_cell

    if not options.into:
        raise UserError("--into is empty; name a folder")
    cell = find_cell(options.cell, options.results, options.experiment)
    from harness.run.export import ExportOptions, export_cell  # imports torch and transformers

    wanted = ExportOptions(options.at, options.adapter, options.dtype, options.model)
    exported = export_cell(cell, Path(options.into), wanted, _command(cell.key, options))
    Terminal().say(f"{cell.label} ({cell.key}) is in {options.into}: {exported.described}")
    return 0


def _command(key: str, options: argparse.Namespace) -> str:
    """Return a command that repeats this export, even when there are more results to choose from."""
    words = ["python", "-m", "harness", "export", key, "--into", options.into]
    words += ["--adapter"] * options.adapter
    flags = {"--results": options.results if options.results != "results" else "", "--experiment": options.experiment}
    flags |= {
        "--at": "" if options.at is None else f"{options.at:g}",
        "--dtype": options.dtype,
        "--model": options.model,
    }
    return shlex.join(words + [word for name, value in flags.items() if value for word in (name, value)])
