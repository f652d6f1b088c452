"""Outputs of any policy from files: reading them as comparisons, and summarising their judgements."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from harness.core.bounded import LONGEST_ROW, UNREADABLE, bounded_content
from harness.core.errors import UserError, one_line
from harness.core.prompt import Prompt, prompt_key
from harness.core.records import COUNTED, Judgement
from harness.evaluation.base import Comparison
from harness.evaluation.statistics.intervals import mean_known, win_rate
from harness.tasks.formats import Dropped, prompt_in, text_in
from harness.tasks.rows import Row, make_row, not_empty
from harness.tasks.sources import read_rows

OUTPUT_COLUMNS = ("output", "response", "completion")
PROMPT_COLUMNS = ("prompt", "instruction")
BASELINE_COLUMN, GENERATOR_COLUMN = "baseline", "generator"


def judged_summary(judgements: Sequence[Judgement]) -> dict[str, object]:
    """Return a summary of judgements as JSON-serialisable values, None where undefined.

    It has the win rate in percent with its bootstrap interval over prompts, the number of judgements with a preference
    (`n`) and their share (`coverage`), the flip rate, the share of verdicts for the response shown first, the share
    that log-probs grade, the number of judgements by status, and the total usage.
    """
    counted = [judgement for judgement in judgements if judgement.status in COUNTED]
    preferences = [j.preference if j.status in COUNTED else np.nan for j in judgements]
    rate = win_rate(np.array([preferences], dtype=float))
    used = [judgement.usage for judgement in judgements if judgement.usage]
    usage = sum(used[1:], start=used[0]) if used else None
    numbers = {
        "win_rate": 100 * rate.value,
        "win_rate_low": 100 * rate.low,
        "win_rate_high": 100 * rate.high,
        "n": len(counted),
        "coverage": len(counted) / len(judgements),
        "flip_rate": mean_known(judgement.flipped for judgement in counted),
        "first_rate": mean_known(judgement.first for judgement in counted),
        "graded_rate": mean_known(judgement.graded for judgement in counted),
    }
    return {
        **{name: None if value != value else value for name, value in numbers.items()},
        "statuses": dict(Counter(judgement.status for judgement in judgements)),
        "usage": asdict(usage) if usage else None,
    }


@dataclass(frozen=True)
class Output:
    """One row of a file: a prompt, its output, the baseline's ("" if it is in another file), and where it stands."""

    prompt: Prompt
    text: str
    baseline: str
    where: str


def read_comparisons(outputs: Path, baseline: Path | None) -> list[Comparison]:
    """Return the comparisons of two files, or of one file with a column `baseline`.

    A file has one output for each prompt, all by one generator: a win rate over more would be of no one policy. Raises
    `UserError` for others, for missing or malformed data, and for an output without a baseline.
    """
    rows = _outputs(outputs, with_baseline=baseline is None)
    if baseline is None:
        return [Comparison(str(i), row.prompt, row.text, row.baseline) for i, row in enumerate(rows.values())]
    known = _outputs(baseline, with_baseline=False)
    lacking = [row.where for key, row in rows.items() if key not in known]
    if lacking:
        raise UserError(f"{baseline} has no output for {len(lacking)} of {len(rows)} prompts (the first: {lacking[0]})")
    return [Comparison(str(i), row.prompt, row.text, known[key].text) for i, (key, row) in enumerate(rows.items())]


def _outputs(file: Path, *, with_baseline: bool) -> dict[str, Output]:
    """Return a file's outputs by `prompt_key`."""
    outputs: dict[str, Output] = {}
    generators: dict[str, str] = {}
    for row in _rows(file):
        output = _output(row, with_baseline=with_baseline)
        earlier = outputs.setdefault(prompt_key(output.prompt), output)
        if earlier is not output:
            raise UserError(
                f"{row.where}: the prompt of {earlier.where} has two outputs here; give each policy a file of its own, "
                "with one output for each prompt"
            )
        if row.get(GENERATOR_COLUMN) is not None:
            generators.setdefault(str(row.get(GENERATOR_COLUMN)), row.where)
    if len(generators) > 1:
        (one, _), (other, where), *_ = generators.items()
        raise UserError(
            f"{where}: outputs of {one_line(other)!r:.60}, after those of {one_line(one)!r:.60}; give each generator a "
            "file of its own"
        )
    return outputs


def _output(row: Row, *, with_baseline: bool) -> Output:
    accepted = f"{' or '.join(PROMPT_COLUMNS)}, and {' or '.join(OUTPUT_COLUMNS)}"
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
    return Output(prompt, text_in(row, columns[1], accepted), other, row.where)


def _rows(file: Path) -> Iterator:
    if file.suffix != ".csv":
        return read_rows(str(file))
    csv.field_size_limit(LONGEST_ROW)  # 128 KiB by default
    try:
        lines = io.StringIO(bounded_content(file).decode("utf-8-sig"), newline="")
        rows = [make_row(row, f"{file} row {i}", None) for i, row in enumerate(csv.DictReader(lines), 1)]
    except (*UNREADABLE, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    for row in rows:
        if None in row.values:  # where DictReader puts what is beyond the header
            raise UserError(f"{row.where} has more cells than there are columns; put texts with commas into quotes")
    return not_empty(rows, str(file))


def _first(row: Row, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)
