"""The command `judge-check`: measures how far a judge agrees with people, on data independent of any policy."""

from __future__ import annotations

import argparse
import json

from harness.cli.arguments import add_command, graded_line, home
from harness.core.errors import UserError
from harness.core.terminal import Terminal

HELP = "Hold a judge against human labels."
DESCRIPTION = "Print a judge's accuracy against labels with its interval, Cohen's kappa, flips and length bias."
EPILOG = """examples:
  python -m harness judge-check --judge preference_model --data llmbar
  python -m harness judge-check --judge experiments/rpo_vs_dpo.yaml --data pandalm
  python -m harness judge-check --judge openai:model=gpt-4.1-mini,budget_usd=1 --data llmbar --limit 200
  python -m harness judge-check --judge hf_pairwise:model=my-judge --data labelled.jsonl --json

A file holds prompt, response_1, response_2 and label (1, 2, or 0 for a tie), or prompt, chosen and rejected.
The result is kept below results/judge-checks/, and leaderboards that the same judge made point to it. A check in which
no comparison with a preferred side was judged measures nothing, and is not kept.
With --limit it goes to a file of its own, so that a trial never replaces the check of all comparisons.
exit status: 0 done, 1 a judgement is missing (run it again), 2 something must be changed first"""


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    command = add_command(commands, "judge-check", run, HELP, DESCRIPTION, EPILOG)
    command.add_argument(
        "--judge", type=home, required=True, metavar="JUDGE", help="KIND, KIND:option=value,... or a YAML file"
    )
    command.add_argument(
        "--data", type=home, required=True, metavar="DATA", help="llmbar, pandalm, hh, tldr, or a file"
    )
    command.add_argument(
        "--task", default="", help="whose template and preferences the judge uses (default: hh, or the data's own)"
    )
    command.add_argument("--limit", type=int, metavar="N", help="check the first N comparisons only")
    command.add_argument(
        "--results", type=home, default="", metavar="FOLDER", help="the folder of all results (default: results)"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Check a judge, store the result and print it; raises `UserError` for invalid data or options."""
    from harness.core.places import check_results
    from harness.core.store import write_json
    from harness.evaluation.judge_check import check_measures
    from harness.evaluation.labelled import load_labelled
    from harness.evaluation.missing import how_to_ask, why_missing
    from harness.reporting.judge_checks import check_file
    from harness.run.judging import standalone_judge

    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit must be at least 1, got {options.limit}")
    labelled = load_labelled(options.data, options.limit)
    task = options.task or (options.data if options.data in ("hh", "tldr") else "hh")
    made = standalone_judge(options.judge, task, f"judge-check {options.data}", options.results)
    file = check_file(made.results, made.judge.id, options.data, options.limit)
    check_results(file.parent)
    judgements = made.judge.judge([row.comparison for row in labelled.rows], lambda done: None)
    result = {
        "judge": made.judge.id,
        "data": options.data,
        "labels": labelled.labels,
        "limit": options.limit,
        "dropped": labelled.dropped,
        "options": made.choice.kind.identity(made.choice.options),
        **check_measures(labelled.rows, judgements),
        "reasons": why_missing(judgements) + how_to_ask(judgements, made.choice.options),
    }
    kept = "nowhere, because nothing was measured"
    if result["n"]:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, result)
        kept = str(file)
    Terminal().lines(json.dumps(result, indent=2) if options.json else check_text(result, len(labelled.rows), kept))
    return 0 if result["coverage"] == 1 else 1


def check_text(result: dict, asked: int, kept: str) -> str:
    """Return the result of a check of `asked` comparisons as readable lines; `kept` says where it is kept."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    def accuracy(row: dict) -> str:
        interval = f" [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" if row["n"] else ""
        return f"{percent(row['accuracy'])}{interval} of {row['n']}"

    measured = f"{accuracy(result)} (95 % interval; a tie is half right)"
    price = result["usd_per_1000"]
    lines = {
        "judge": result["judge"],
        "data": f"{result['data']}{_limited(result)}, {result['labels']}"
        + "".join(f"; {n} dropped: {why}" for why, n in result["dropped"].items()),
        "accuracy": measured if result["n"] else f"not measured (0 of {asked})",
        **{f"  {name}": accuracy(row) for name, row in result["subsets"].items()},
        "Cohen's kappa": "-" if result["kappa"] is None else f"{result['kappa']:.3f}",
        "coverage": percent(result["coverage"]) + (f"; {result['reasons']}" if result["reasons"] else ""),
        "flip rate": percent(result["flip_rate"]),
        "first shown": percent(result["first_rate"]) if result["first_rate"] is not None else "- (no order)",
        **graded_line(result["graded_rate"]),
        "longer answer": f"{percent(result['longer'])} (the labels: {percent(result['labels_longer'])})",
        "USD per 1,000": "no known price" if price is None else f"{price:.2f}",
        "kept in": kept,
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def _limited(result: dict) -> str:
    return f", the first {result['limit']}" if result["limit"] else ""
