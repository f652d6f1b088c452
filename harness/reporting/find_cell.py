"""Finds the cell that a user names by a key, the beginning of one, or task/loss/settings/seed as in a leaderboard."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

from harness.core.errors import UserError, one_line
from harness.reporting.cell_files import CellFiles, ExperimentFiles, experiments_in
from losses.registry import nearest

SHOWN = 10  # candidates in a message
LABEL = ("task", "loss", "settings", "seed")  # the parts of a label
CLOSE = 0.5  # the least similarity of a name that is suggested


def find_cell(text: str, results: Path, experiment: str = "") -> CellFiles:
    """Return the cell that `text` names among all results, or among those of one experiment.

    `text` is a key, the beginning of one, or task/loss/settings/seed, whose last parts may be left out as long as only
    one cell matches.

    Raises `UserError` if there are no results, if no cell matches (it names the nearest), or if several do (it lists
    them).
    """
    cells: list[CellFiles] = []
    damaged: list[UserError] = []
    for one in _experiments(Path(results), experiment):
        try:
            cells += one.cells
        except UserError as error:  # the cells of the other experiments can still be found
            damaged.append(error)
    matching = [cell for cell in cells if cell.key == text] or [cell for cell in cells if _fits(text, cell)]
    if damaged and not matching:
        raise damaged[0]
    if not cells:
        raise UserError(f"no cells in {results}; run an experiment first: python -m harness run EXPERIMENT.yaml")
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
    if name not in experiments and (results / name / "leaderboard.csv").is_file():
        raise UserError(f"{results / name} holds only tables, no cells; a run of the experiment makes them")
    if name not in experiments:
        raise UserError(f"no experiment {name!r} in {results}{nearest(name, experiments)}")
    return [experiments[name]]


def _hint(text: str, cells: list[CellFiles]) -> str:
    """Return a hint: the label that was perhaps meant, or the beginning of a key; else an example of a cell."""
    labels = [_parts(cell.label) for cell in cells]
    without_task = [f"{task}/{text}" for task in _at(0, labels) if any(_fits(f"{task}/{text}", cell) for cell in cells)]
    if without_task:
        meant = without_task
    elif "/" in text:
        meant = _nearest_label(_parts(text), labels)
    else:
        keys = {cell.key[: len(text)]: [cell.key[: len(text)]] for cell in cells}
        losses = {loss: [f"{task}/{loss}" for task in _at(0, labels, loss)] for loss in _at(1, labels)}
        known = {**keys, **losses, **{task: [task] for task in _at(0, labels)}}
        meant = [label for name in get_close_matches(text, known, n=1, cutoff=CLOSE) for label in known[name]]
    if meant:
        return f"; did you mean {' or '.join(repr(one_line(label)) for label in meant)}?"
    return f"; there are {len(cells)}, such as {cells[0].key} = {one_line(cells[0].label)}"


def _nearest_label(wanted: list[str], labels: list[list[str]]) -> list[str]:
    """Return the label that is nearest part by part, as far as it follows `wanted`; nothing if no task or loss is near.

    Each part is chosen among the labels that begin with the parts before it, so that task and loss count first.
    """
    meant: list[str] = []
    for place, part in enumerate(wanted[: len(LABEL)]):
        options = {_numbers_alike(label[place]): label[place] for label in labels if label[:place] == meant}
        cutoff = CLOSE if LABEL[place] in ("task", "loss") else 0.0
        close = get_close_matches(_numbers_alike(part), options, n=1, cutoff=cutoff)
        if not close:
            return []
        meant.append(options[close[0]])
    return ["/".join(meant)]


def _at(place: int, labels: list[list[str]], loss: str = "") -> list[str]:
    """Return the different parts of labels at a place, of those with this loss."""
    return list(dict.fromkeys(label[place] for label in labels if not loss or label[1] == loss))


def _parts(label: str) -> list[str]:
    return label.rstrip("/").split("/", len(LABEL) - 1)


def _numbers_alike(text: str) -> str:
    """Return a label in which `beta=1` and `beta=1.0` are the same."""
    return re.sub(r"(?<==)-?\d+(?:\.\d*)?(?:e[+-]?\d+)?(?=[ /]|$)", lambda number: str(float(number.group())), text)


def _fits(text: str, cell: CellFiles) -> bool:
    """Whether text is the beginning of the cell's key, its label, or the first parts of its label."""
    wanted, label = _numbers_alike(text.rstrip("/")), _numbers_alike(cell.label)
    return bool(text) and (cell.key.startswith(text) or f"{label}/".startswith(f"{wanted}/"))
