"""The command `alpaca-lc`: AlpacaEval 2.0's metrics from a file of annotations, without a network or a key."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from harness.cli.arguments import add_command
from harness.core.terminal import Terminal

ALIGNMENTS = ("instruction", "position")
HELP = "AlpacaEval 2.0's win rate, standard error and length-controlled win rate of a file of annotations."
DESCRIPTION = "Print win rate, standard error and length-controlled win rate with its bootstrap interval."
EPILOG = """examples:
  python -m harness alpaca-lc annotations.csv
  python -m harness alpaca-lc annotations.csv.gz --json
  python -m harness alpaca-lc incomplete.csv --alignment position

The file has a row per instruction and the columns instruction_index, len_1, len_2, preference:
the instruction's place among AlpacaEval's 805 (from 0), the lengths of the reference's and of the model's output in
characters, and the preference (1: the reference's output won, 2: the model's; empty: no judgement).
exit status: 0 done, 2 something in the file must be changed first"""


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    command = add_command(commands, "alpaca-lc", run, HELP, DESCRIPTION, EPILOG)
    command.add_argument("file", type=Path, help="annotations as CSV, gzipped or not")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.add_argument(
        "--difficulty",
        choices=("auto", "official", "estimated"),
        default="auto",
        help="the table of instruction difficulties: upstream's from the model hub, the packaged estimate of it, or "
        "(auto) upstream's where it can be had, else the estimate",
    )
    command.add_argument(
        "--alignment",
        choices=ALIGNMENTS,
        default=ALIGNMENTS[0],
        help="give each row its instruction's difficulty, which takes all instructions, or, as upstream does, that of "
        "its position in the file, to reproduce what was published for incomplete files",
    )


def run(options: argparse.Namespace) -> int:
    """Print the requested metrics; raises `UserError` for an invalid file."""
    values = metrics(options.file, options.difficulty, options.alignment)
    text = json.dumps({k: _json(v) for k, v in values.items()}, indent=2) if options.json else _readable(values)
    Terminal().lines(text)
    return 0


def metrics(file: Path, difficulty: str = "auto", alignment: str = ALIGNMENTS[0]) -> dict[str, object]:
    """Return everything that the command prints about a file; rates in percent, NaN if there is none."""
    from harness.evaluation.alpaca_eval.difficulty import difficulty_table
    from harness.evaluation.alpaca_eval.metrics import length_controlled_win_rate, read_annotations, win_rates
    from harness.evaluation.statistics.length_control import RESAMPLES

    annotations, table = read_annotations(file), difficulty_table(difficulty)
    interval, reason = length_controlled_win_rate(annotations, table, alignment=alignment)
    return {
        **win_rates(annotations.preference),
        "length_controlled_winrate": interval.value,
        "length_controlled_low": interval.low,
        "length_controlled_high": interval.high,
        "length_controlled_missing": reason,
        "resamples": RESAMPLES,
        "alignment": alignment,
        "difficulty": table.origin,
        "difficulty_note": table.note,
    }


def _readable(values: dict) -> str:
    lines = [
        f"win rate            {values['win_rate']:.2f} %, standard error {values['standard_error']:.2f}, "
        f"n {values['n_total']}"
    ]
    if values["length_controlled_missing"]:
        lines.append(f"length-controlled   not given: {values['length_controlled_missing']}")
        if values["alignment"] == "instruction":
            lines.append("                    (--alignment position takes rows as they come, as upstream does)")
    else:
        value, low, high = (values[f"length_controlled_{end}"] for end in ("winrate", "low", "high"))
        lines.append(
            f"length-controlled   {value:.2f} % [{low:.2f}, {high:.2f}], 95 % bootstrap interval over the instructions"
        )
        note = f" ({values['difficulty_note']})" if values["difficulty_note"] else ""
        lines.append(f"difficulties        {values['difficulty']}{note}")
    return "\n".join(lines)


def _json(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value
