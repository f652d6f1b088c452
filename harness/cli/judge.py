"""The command `judge`: judges anyone's outputs against a baseline, with the judges of the experiments."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from harness.cli.arguments import add_command, graded_line, home, home_path
from harness.core.errors import UserError
from harness.core.places import check_output
from harness.core.terminal import Terminal
from harness.tasks.sources import EXTENSIONS

HELP = "Judge a file of outputs against a baseline."
DESCRIPTION = "Judge a file of outputs against a baseline; write the judgements, print the win rate."
EPILOG = """examples:
  python -m harness judge outputs.jsonl --baseline reference.json --judge openai:model=gpt-4.1-mini
  python -m harness judge both.csv --judge preference_model --task tldr --json
  python -m harness judge outputs.json --baseline other.json --judge judge.yaml --out judged.jsonl
  python -m harness judge model_outputs.json --baseline harness/tasks/data/alpaca_eval.jsonl.gz --judge alpaca_eval

A file is JSON, JSON lines, CSV or Parquet with prompt (or instruction: text, or a list of messages) and output (or
response, completion); AlpacaEval's own files are that. The baseline is a second such file, matched by the prompts, or
the column 'baseline' of the first. Answers are kept: what is judged is not asked or paid for again.
exit status: 0 all are judged, 1 a judgement is missing (run it again), 2 something must be changed first"""


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    command = add_command(commands, "judge", run, HELP, DESCRIPTION, EPILOG)
    command.add_argument("outputs", type=home_path, help="the outputs to judge")
    command.add_argument("--baseline", type=home_path, metavar="FILE", help="what they are judged against")
    command.add_argument(
        "--judge", type=home, required=True, metavar="JUDGE", help="KIND, KIND:option=value,... or a YAML file"
    )
    command.add_argument("--task", default="hh", help="whose template and preferences the judge uses (default: hh)")
    command.add_argument("--out", type=home_path, metavar="FILE", help="the judgements (default: beside the outputs)")
    command.add_argument(
        "--results", type=home, default="", metavar="FOLDER", help="the folder of all results (default: results)"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Judge a file, write the judgements and print a summary; raises `UserError` for invalid files or options."""
    from harness.core.store import write_jsonl
    from harness.evaluation.alpaca_eval.metrics import metrics_of
    from harness.evaluation.missing import how_to_ask, why_missing
    from harness.evaluation.outputs import judged_summary, read_comparisons
    from harness.run.judging import standalone_judge

    comparisons = read_comparisons(options.outputs, options.baseline)
    out = _out(options)
    made = standalone_judge(options.judge, options.task, f"judge {options.outputs}", options.results)
    judgements = made.judge.judge(comparisons, lambda done: None)
    write_jsonl(
        out,
        (
            {
                "prompt": [asdict(message) for message in comparison.prompt],
                "output": comparison.response,
                "baseline": comparison.baseline,
                **asdict(judgement),
            }
            for comparison, judgement in zip(comparisons, judgements, strict=True)
        ),
    )
    table = made.judge.difficulty(comparisons) if hasattr(made.judge, "difficulty") else None
    of_alpaca_eval = metrics_of(comparisons, judgements, table) if table else {}
    missing = why_missing(judgements) + how_to_ask(judgements, made.choice.options)
    summary = {"judge": made.judge.id, **judged_summary(judgements), **of_alpaca_eval}
    summary |= {"missing": missing, "judgements": str(out)}
    Terminal().lines(json.dumps(summary, indent=2) if options.json else judged_text(summary))
    return 0 if summary["coverage"] == 1 else 1


def _out(options: argparse.Namespace) -> Path:
    """Return the file for the judgements. Raises `UserError` if it cannot be written, or is one of those to be read."""
    name = options.outputs.name
    stem = next((name.removesuffix(kind) for kind in (*EXTENSIONS, ".csv") if name.endswith(kind)), name)
    out = options.out or options.outputs.with_name(f"{stem}.judged.jsonl")
    check_output(out, "the file of judgements", "name another with --out FILE")
    for read in filter(None, (options.outputs, options.baseline)):
        if out.exists() and read.exists() and out.samefile(read):
            raise UserError(f"--out {out} is a file of outputs, which it would replace; name another")
    return out


def judged_text(summary: dict) -> str:
    """Return a summary as readable lines."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    usage, interval = summary["usage"], ""
    if summary["win_rate"] is not None:
        interval = f"{summary['win_rate']:.1f} % [{summary['win_rate_low']:.1f}, {summary['win_rate_high']:.1f}]"
    lines = {
        "judge": summary["judge"],
        "win rate": f"{interval or '-'} (95 % interval over prompts; a tie is half a win) of {summary['n']}",
        "LC": _length_controlled(summary),
        "coverage": f"{percent(summary['coverage'])} ({', '.join(f'{n} {s}' for s, n in summary['statuses'].items())})",
        "missing": summary["missing"],
        "flip rate": percent(summary["flip_rate"]),
        "first shown": percent(summary["first_rate"]),
        **graded_line(summary["graded_rate"]),
    }
    lines = {name: line for name, line in lines.items() if line}
    if usage:
        price = "no known price" if usage["usd"] is None else f"{usage['usd']:.2f} USD"
        lines["paid"] = f"{usage['prompt_tokens']:,} + {usage['completion_tokens']:,} tokens, {price}, once"
    lines["judgements"] = summary["judgements"]
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def _length_controlled(summary: dict) -> str:
    """Return the line of AlpacaEval's length-controlled win rate; empty for other judges and other prompts."""
    if "length_controlled_winrate" not in summary:
        return ""
    if summary["length_controlled_winrate"] is None:
        return "- (takes a judgement of each of the 805 instructions)"
    value, low, high = (summary[f"length_controlled_{end}"] for end in ("winrate", "low", "high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}] (length-controlled; {summary['difficulty']} difficulties)"
