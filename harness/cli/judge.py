"""The command `judge`: judge anyone's outputs against a baseline, with the judges of the experiments."""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

OUTPUT_COLUMNS = ("output", "response", "completion")
PROMPT_COLUMNS = ("prompt", "instruction")
BASELINE_COLUMN = "baseline"
EPILOG = """examples:
  python -m harness judge outputs.jsonl --baseline reference.json --judge openai:model=gpt-4.1-mini
  python -m harness judge both.csv --judge preference_model --task tldr --json
  python -m harness judge outputs.json --baseline other.json --judge judge.yaml --out judged.jsonl
  python -m harness judge model_outputs.json --baseline harness/tasks/data/alpaca_eval.jsonl.gz --judge alpaca_eval

A file is JSON, JSON lines, CSV or Parquet with prompt (or instruction: text, or a list of messages) and output (or
response, completion); AlpacaEval's own files are that. The baseline is a second such file, matched by the prompts, or
the column 'baseline' of the first. Answers are kept: what is judged is not asked or paid for again.
exit status: 0 all are judged, 1 a judgement is missing (run it again), 2 something must be changed first"""


def add_command(commands) -> None:
    """Add the command to the parsers of the command line."""
    command = commands.add_parser(
        "judge",
        help="Judge a file of outputs against a baseline.",
        description="Judge a file of outputs against a baseline; write the judgements, print the win rate.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("outputs", type=Path, help="the outputs to judge")
    command.add_argument("--baseline", type=Path, metavar="FILE", help="what they are judged against")
    command.add_argument("--judge", required=True, metavar="JUDGE", help="KIND, KIND:option=value,... or a YAML file")
    command.add_argument("--task", default="hh", help="whose template and preferences the judge uses (default: hh)")
    command.add_argument("--out", type=Path, metavar="FILE", help="the judgements (default: beside the outputs)")
    command.add_argument("--results", default="", metavar="FOLDER", help="the folder of all results (default: results)")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Judge a file, write and print what came of it; raises `UserError` for what could not work."""
    from harness.core.store import write_jsonl
    from harness.evaluation.alpaca_eval.metrics import metrics_of
    from harness.run.judging import standalone_judge

    comparisons = read_comparisons(options.outputs, options.baseline)
    made = standalone_judge(options.judge, options.task, f"judge {options.outputs}", options.results)
    judgements = made.judge.judge(comparisons, lambda done: None)
    out = options.out or options.outputs.with_name(f"{options.outputs.name.partition('.')[0]}.judged.jsonl")
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
    found = {"judge": made.judge.id, **summary(judgements), **of_alpaca_eval, "judgements": str(out)}
    print(json.dumps(found, indent=2) if options.json else readable(found))
    return 0 if found["coverage"] == 1 else 1


def summary(judgements) -> dict[str, object]:
    """Return the win rate in percent with its bootstrap interval over prompts, n, coverage and what else they carry."""
    import numpy as np

    from harness.evaluation.base import COUNTED
    from harness.evaluation.statistics.intervals import flip_rate, win_rate

    counted = [judgement for judgement in judgements if judgement.status in COUNTED]
    preferences = [j.preference if j.status in COUNTED else np.nan for j in judgements]
    rate = win_rate(np.array([preferences], dtype=float))
    first = [judgement.first for judgement in counted if judgement.first is not None]
    used = [judgement.usage for judgement in judgements if judgement.usage]
    usage = sum(used[1:], start=used[0]) if used else None
    numbers = {
        "win_rate": 100 * rate.value,
        "win_rate_low": 100 * rate.low,
        "win_rate_high": 100 * rate.high,
        "n": len(counted),
        "coverage": len(counted) / len(judgements),
        "flip_rate": flip_rate(judgement.flipped for judgement in counted),
        "first_rate": sum(first) / len(first) if first else None,
    }
    return {
        **{name: None if value != value else value for name, value in numbers.items()},
        "statuses": dict(Counter(judgement.status for judgement in judgements)),
        "usage": asdict(usage) if usage else None,
    }


def readable(found: dict) -> str:
    """Return a summary in lines for a person."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    usage, interval = found["usage"], ""
    if found["win_rate"] is not None:
        interval = f"{found['win_rate']:.1f} % [{found['win_rate_low']:.1f}, {found['win_rate_high']:.1f}]"
    lines = {
        "judge": found["judge"],
        "win rate": f"{interval or '-'} (95 % interval over prompts; a tie is half a win) of {found['n']}",
        "LC": _length_controlled(found),
        "coverage": f"{percent(found['coverage'])} ({', '.join(f'{n} {s}' for s, n in found['statuses'].items())})",
        "flip rate": percent(found["flip_rate"]),
        "first shown": percent(found["first_rate"]),
    }
    lines = {name: line for name, line in lines.items() if line}
    if usage:
        price = "no known price" if usage["usd"] is None else f"{usage['usd']:.2f} USD"
        lines["paid"] = f"{usage['prompt_tokens']:,} + {usage['completion_tokens']:,} tokens, {price}, once"
    lines["judgements"] = found["judgements"]
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def _length_controlled(found: dict) -> str:
    """Return the line of AlpacaEval's length-controlled win rate; empty for another judge or other prompts."""
    if "length_controlled_winrate" not in found:
        return ""
    if found["length_controlled_winrate"] is None:
        return "- (takes a judgement of each of the 805 instructions)"
    value, low, high = (found[f"length_controlled_{end}"] for end in ("winrate", "low", "high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}] (length-controlled; {found['difficulty']} difficulties)"


def read_comparisons(outputs: Path, baseline: Path | None) -> list:
    """Return the comparisons of two files, or of one with a column `baseline`.

    Raises `UserError` for what is missing or malformed, prompts that stand twice, or outputs without a baseline.
    """
    from harness.core.errors import UserError
    from harness.evaluation.base import Comparison
    from harness.tasks.formats import prompt_key

    rows = list(_outputs(outputs, with_baseline=baseline is None))
    if baseline is None:
        return [Comparison(str(i), prompt, text, other) for i, (prompt, text, other, _) in enumerate(rows)]
    known = {}
    for prompt, text, _, where in _outputs(baseline, with_baseline=False):
        if known.setdefault(prompt_key(prompt), text) != text:
            raise UserError(f"{where}: the baseline has two outputs for one prompt")
    lacking = [where for prompt, _, _, where in rows if prompt_key(prompt) not in known]
    if lacking:
        raise UserError(f"{baseline} has no output for {len(lacking)} of {len(rows)} prompts (the first: {lacking[0]})")
    return [Comparison(str(i), prompt, text, known[prompt_key(prompt)]) for i, (prompt, text, _, _) in enumerate(rows)]


def _outputs(file: Path, *, with_baseline: bool) -> Iterator[tuple]:
    """Yield prompt, output, baseline ("" unless asked for) and place of each row."""
    from harness.core.errors import UserError
    from harness.tasks.formats import Dropped, prompt_in, text_in

    accepted = f"{' or '.join(PROMPT_COLUMNS)}, and {' or '.join(OUTPUT_COLUMNS)}"
    for row in _rows(file):
        columns = [_first(row, names) for names in (PROMPT_COLUMNS, OUTPUT_COLUMNS)]
        if None in columns:
            raise UserError(f"{row.where}: a row needs {accepted}; it has {', '.join(map(str, row.values))}")
        if with_baseline and row.get(BASELINE_COLUMN) is None:
            raise UserError(f"{row.where}: no column 'baseline'; name the baseline's file with --baseline")
        try:
            prompt = prompt_in(row, columns[0])
        except Dropped as reason:
            raise UserError(f"{row.where}: {reason}") from None
        other = text_in(row, BASELINE_COLUMN, accepted) if with_baseline else ""
        yield prompt, text_in(row, columns[1], accepted), other, row.where


def _rows(file: Path) -> Iterator:
    from harness.core.errors import UserError
    from harness.tasks.rows import make_row, not_empty
    from harness.tasks.sources import read_rows

    if file.suffix != ".csv":
        return read_rows(str(file))
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            found = [make_row(row, f"{file} row {i}", None) for i, row in enumerate(csv.DictReader(lines), 1)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    return not_empty(found, str(file))


def _first(row, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)
