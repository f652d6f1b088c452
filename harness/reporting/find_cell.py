"""Finds the cell that a user names by a key, the beginning of one, or task/loss/settings/seed as in a leaderboard."""

from __future__ import annotations

from pathlib import Path

from harness.core.errors import UserError
from harness.reporting.cell_files import CellFiles, ExperimentFiles, experiments_in
from harness.reporting.results import one_line
from losses.registry import nearest

SHOWN = 8  # candidates in a message


def find_cell(text: str, results: Path, experiment: str = "") -> CellFiles:
    """Return the cell that `text` names among all results, or among those of one experiment.

    `text` is a key, the beginning of one, or task/loss/settings/seed, whose last parts may be left out as long as only
    one cell matches.

    Raises `UserError` if there are no results, if no cell matches (it names the nearest), or if several do (it lists
    them).
    """
    cells = [cell for one in _experiments(Path(results), experiment) for cell in one.cells]
    if not cells:
        raise UserError(f"no cells in {results}; run an experiment first: python -m harness run EXPERIMENT.yaml")
    matching = [cell for cell in cells if cell.key == text] or [cell for cell in cells if _fits(text, cell)]
    if len(matching) == 1:
        return matching[0]
    if not matching:
        raise UserError(f"no cell {one_line(text)!r} in {results}{_hint(text, cells)}")
    if len({cell.key for cell in matching}) == 1:
        names = ", ".join(cell.experiment.name for cell in matching)
        raise UserError(f"cell {text!r} is in several experiments ({names}); say which with --experiment NAME")
    listed = [f"{cell.key} = {one_line(cell.label)} of {cell.experiment.name}" for cell in matching[:SHOWN]]
    more = f"; and {len(matching) - SHOWN} more" if len(matching) > SHOWN else ""
    raise UserError(f"{text!r} fits {len(matching)} cells: {'; '.join(listed)}{more}")


def _experiments(results: Path, name: str) -> list[ExperimentFiles]:
    if not results.is_dir():
        raise UserError(f"no folder {results}; say with --results FOLDER where the results are")
    experiments = {experiment.name: experiment for experiment in experiments_in(results)}
    if not name:
        return list(experiments.values())
    if name not in experiments:
        raise UserError(f"no experiment {name!r} in {results}{nearest(name, experiments)}")
    return [experiments[name]]


def _hint(text: str, cells: list[CellFiles]) -> str:
    """Return a hint: the nearest key or label, cut to the length of `text`; else the number of cells and an example."""
    parts = text.count("/") + 1
    shown = {"/".join(c.label.split("/")[:parts]) for c in cells} if parts > 1 else {c.key[: len(text)] for c in cells}
    close = nearest(text, sorted(shown)) if text else ""
    if "did you mean" in close:
        return one_line(close)
    return f"; there are {len(cells)}, such as {cells[0].key} = {one_line(cells[0].label)}"


def _fits(text: str, cell: CellFiles) -> bool:
    """Whether text is the beginning of the cell's key, its label, or the first parts of its label."""
    return bool(text) and (cell.key.startswith(text) or f"{cell.label}/".startswith(f"{text.rstrip('/')}/"))
