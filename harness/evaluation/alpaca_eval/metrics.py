"""AlpacaEval 2.0's metrics from annotations: win rate, standard error, discrete win rate, length-controlled win rate.

Checked against alpaca_eval 0.6.6 (`metrics/helpers.py`, `metrics/glm_winrate.py`, `processors.py`) and its published
leaderboard. Preferences are on upstream's scale: 1 if the reference won, 2 if the model won, 1.5 for a draw (0 in old
files).
"""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.core.bounded import UNREADABLE, bounded_content
from harness.core.errors import UserError
from harness.core.records import Judgement
from harness.evaluation.alpaca_eval.difficulty import INSTRUCTIONS, DifficultyTable
from harness.evaluation.base import Comparison
from harness.evaluation.statistics.intervals import UNKNOWN, Interval, mean_of_seeds
from harness.evaluation.statistics.length_control import RESAMPLES, length_controlled

REQUIRED = ("instruction_index", "len_1", "len_2", "preference")
MISSING = -1.0  # upstream's value for a failed judgement


@dataclass(frozen=True)
class Annotations:
    """A model's judgements, one element per row: the `index` of the instruction (0 to 804, upstream's order), the
    lengths of the reference's and the model's output in characters, and the preference, NaN if there is none."""

    index: np.ndarray
    reference_length: np.ndarray
    model_length: np.ndarray
    preference: np.ndarray


def shows_model_first(instruction: str) -> bool:
    """Return whether upstream's annotator switches the outputs for this instruction, showing the model's first."""
    return random.Random(f"is_switched_outputs{instruction}0").choices([False, True])[0]


def win_rates(preference: np.ndarray) -> dict[str, float | int]:
    """Return upstream's metrics of preferences on its scale; rates and errors in percent. NaN is left out.

    `standard_error` is the standard error of the mean over the instructions; `discrete_win_rate` rounds each preference
    to a win, a loss or a draw.
    """
    known = preference[~np.isnan(preference)]
    known = np.where(known == 0, 1.5, known) - 1
    whole = np.where(known == 0.5, 0.5, np.round(known))
    n = len(known)
    return {
        "win_rate": 100 * float(known.mean()) if n else math.nan,
        "standard_error": 100 * float(known.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan,
        "n_wins": int((known > 0.5).sum()),
        "n_wins_base": int((known < 0.5).sum()),
        "n_draws": int((known == 0.5).sum()),
        "n_total": n,
        "discrete_win_rate": 100 * float(whole.mean()) if n else math.nan,
    }


def length_controlled_win_rate(
    annotations: Annotations, table: DifficultyTable, *, alignment: str = "instruction", resamples: int = RESAMPLES
) -> tuple[Interval, str]:
    """Return the LC win rate in percent with its bootstrap interval, and ""; or an unknown interval and the reason.

    `alignment` selects the difficulty of a row:

    - "instruction": its instruction's. All 805 instructions are required, because the rate is a mean over them.
    - "position": the difficulty at the row's position in the file, as upstream does, for reproducing published rates.
      The result is the same for a complete file in upstream's order, but a missing row shifts all that follow.
    """
    n = len(annotations.index)
    if alignment == "instruction":
        if n < INSTRUCTIONS:
            return UNKNOWN, f"{INSTRUCTIONS - n} of the {INSTRUCTIONS} instructions have no row"
        difficulty = table.difficulty[annotations.index]
    else:
        difficulty = table.difficulty[:n]
    preference = np.where(annotations.preference == 0, 1.5, annotations.preference) - 1
    differences = annotations.reference_length - annotations.model_length
    rate = length_controlled(preference, differences, difficulty, table.anchors, resamples=resamples)
    interval = mean_of_seeds([rate])
    if math.isnan(interval.value):
        return UNKNOWN, "no preferences, or all outputs differ from the reference's by the same length"
    return Interval(*(100 * value for value in interval)), ""


def metrics_of(comparisons: Sequence[Comparison], judgements: Sequence[Judgement], table: Mapping) -> dict[str, object]:
    """Return the metrics of judgements on AlpacaEval's instructions as a JSON-serialisable dict.

    `table` is the result of their judge's `difficulty`. The metrics are the standard error, the discrete win rate, the
    LC win rate with its interval (None unless all instructions are judged), and the origin of the difficulties.
    """
    rows = [
        (table["index"][c.id], len(c.baseline), len(c.response), math.nan if j.preference is None else j.preference + 1)
        for c, j in zip(comparisons, judgements, strict=True)
    ]
    index, *columns = np.array(rows).T
    annotations = Annotations(index.astype(int), *columns)
    rates, interval = win_rates(annotations.preference), UNKNOWN
    if rates["n_total"] == INSTRUCTIONS and len(set(index)) == INSTRUCTIONS:
        interval, _ = length_controlled_win_rate(annotations, DifficultyTable.from_json(table))
    metrics = {
        "standard_error": rates["standard_error"],
        "discrete_win_rate": rates["discrete_win_rate"],
        "length_controlled_winrate": interval.value,
        "length_controlled_low": interval.low,
        "length_controlled_high": interval.high,
    }
    return {**{k: None if math.isnan(v) else v for k, v in metrics.items()}, "difficulty": table["origin"]}


def read_annotations(path: Path) -> Annotations:
    """Read a CSV file (gzipped or not) with the columns `REQUIRED`; others are ignored.

    `preference` is 1 to 2, 0 for a draw, or empty or -1 if there is none. Raises `UserError` with the line for an
    invalid value and for a duplicate instruction.
    """
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), restval="", strict=True)
    rows: list[list[float]] = []
    seen: dict[float, int] = {}
    try:
        missing = [name for name in REQUIRED if name not in (reader.fieldnames or ())]
        if missing:
            raise UserError(
                f"{path}: no column {' and '.join(missing)}; needed: {', '.join(REQUIRED)}; here: "
                f"{', '.join(reader.fieldnames or ()) or 'nothing'}"
            )
        for row in reader:
            where = f"{path}:{reader.line_num}"
            index = _whole(row, "instruction_index", where, INSTRUCTIONS - 1)
            if index in seen:
                raise UserError(f"{where}: instruction {index} stands in line {seen[index]} too; keep one of the two")
            seen[index] = reader.line_num
            rows.append([index, *(_whole(row, name, where) for name in ("len_1", "len_2")), _preference(row, where)])
    except csv.Error as error:
        raise UserError(f"{path}: not CSV after line {reader.line_num} ({error})") from None
    if not rows:
        raise UserError(f"{path}: no rows below the header")
    index, reference, model, preference = np.array(rows).T
    return Annotations(index.astype(int), reference, model, preference)


def _text(path: Path) -> str:
    try:
        return bounded_content(Path(path)).decode("utf-8-sig")
    except (*UNREADABLE, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _number(row: dict, name: str, where: str) -> float:
    try:
        return float(row[name])
    except (TypeError, ValueError):
        raise UserError(f"{where}: {name} must be a number, got {row[name]!r:.40}") from None


def _whole(row: dict, name: str, where: str, highest: float = math.inf) -> int:
    value = _number(row, name, where)
    if not (0 <= value <= highest and value < math.inf and value == int(value)):
        limit = f" to {highest}" if highest < math.inf else " up"
        raise UserError(f"{where}: {name} must be a whole number from 0{limit}, got {row[name]!r:.40}")
    return int(value)


def _preference(row: dict, where: str) -> float:
    if not row["preference"].strip():
        return math.nan
    value = _number(row, "preference", where)
    if math.isnan(value) or value == MISSING:
        return math.nan
    if not (value == 0 or 1 <= value <= 2):
        raise UserError(
            f"{where}: preference must be 1 (reference) to 2 (model), 0 (draw), or empty, got {row['preference']!r:.40}"
        )
    return value
