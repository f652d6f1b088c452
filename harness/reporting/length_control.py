"""Length-controlled win rates of the policies of one leaderboard, from their judged responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from harness.core.record_files import read_record, readable
from harness.evaluation.alpaca_eval.difficulty import INSTRUCTIONS, OFFICIAL, DifficultyTable, StoredTable
from harness.evaluation.statistics.length_control import joint_difficulty, length_controlled

FITTED = "fitted"


class Controlled(NamedTuple):
    """The length-controlled win rates of one table.

    `rates` holds, for each cell that has one, its rate and the resampled rates, as `mean_of_seeds` takes them.
    `difficulty` is the origin of the difficulties: "fitted", "official" or "estimated".
    """

    rates: dict[str, tuple[float, np.ndarray]]
    difficulty: str


def length_controlled_rates(evaluations: pd.DataFrame, prompts: pd.DataFrame, ids: list) -> Controlled:
    """Return the length-controlled win rates of all cells of a table, evaluated on the prompts `ids`.

    If the judge supplied AlpacaEval's difficulties, a cell has a rate only if all 805 instructions are judged.
    Otherwise the difficulties are fitted to all judgements of the table, and each cell's rate is over the prompts that
    it was judged on.
    """
    cells = prompts["cell"].unique().tolist()
    preferences, lengths, baselines = (
        _by_cell(prompts, column, cells, ids) for column in ("preference", "characters", "baseline_characters")
    )
    differences, judged = baselines - lengths, ~np.isnan(preferences)
    tables = [readable(Path(path), _judged_by) for path in sorted(set(evaluations["difficulty"]) - {""})]
    if not tables:
        difficulty = joint_difficulty(preferences, differences)
        rates = {
            cell: length_controlled(preferences[i, rows], differences[i, rows], difficulty[rows])
            for i, (cell, rows) in enumerate(zip(cells, judged, strict=True))
            if rows.any()
        }
        return Controlled(rates, FITTED)
    table, index = max(tables, key=lambda read: read[0].origin == OFFICIAL)
    order = np.argsort([index.get(id, -1) for id in ids])
    if set(index.values()) != set(range(INSTRUCTIONS)) or set(index) != set(ids):
        return Controlled({}, table.origin)
    rates = {
        cell: length_controlled(preferences[i, order], differences[i, order], table.difficulty, table.anchors)
        for i, cell in enumerate(cells)
        if judged[i].all()
    }
    return Controlled(rates, table.origin)


def _by_cell(prompts: pd.DataFrame, column: str, cells: list[str], ids: list) -> np.ndarray:
    """Return a column as a (cells, prompts) array, NaN where there is no value."""
    table = prompts.pivot(index="cell", columns="id", values=column).reindex(index=cells, columns=ids)
    return table.to_numpy(dtype=float, na_value=np.nan)


def _judged_by(path: Path) -> tuple[DifficultyTable, Mapping[str, int]]:
    """Return the table in a judge's file, and the places of its prompts among the instructions."""
    stored = read_record(StoredTable, path.parent)
    return DifficultyTable.from_json(asdict(stored)), stored.index
