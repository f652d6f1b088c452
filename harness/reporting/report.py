"""The only entry point of reporting: turns a results folder into leaderboard, per-prompt table and plots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.console import Console

from harness.core.errors import UserError
from harness.core.places import probe
from harness.core.store import write_text
from harness.core.terminal import Terminal
from harness.reporting.curves import training_figure
from harness.reporting.figure import FORMATS, save
from harness.reporting.frontier import frontier_figure, frontier_page, frontier_table
from harness.reporting.leaderboard import build_leaderboard
from harness.reporting.measures import controlled_columns, load_measures, with_measures
from harness.reporting.plots import kl_figure, length_figure, win_rate_figure
from harness.reporting.results import Results, load_results
from harness.reporting.style import RC, Styles, styles
from harness.reporting.tables import csv_text, markdown, terminal_tables

PIPED_WIDTH = 100  # characters


@dataclass(frozen=True)
class Report:
    """The data of all outputs: the results, the leaderboard and, for tasks with a known reward, the measurements."""

    results: Results
    leaderboard: pd.DataFrame
    measures: pd.DataFrame
    frontiers: pd.DataFrame

    @cached_property
    def look(self) -> Styles:
        """The style of each loss and setting, the same in every figure."""
        return styles(self.results.cells)


# Each file of a report below the results folder, and the function that makes it; None if there is nothing to show.
TEXTS: dict[str, Callable[[Report], str | None]] = {
    "leaderboard.csv": lambda report: csv_text(report.leaderboard),
    "prompts.csv": lambda report: csv_text(report.results.prompts),
    "leaderboard.md": lambda report: markdown(report.leaderboard, report.results.experiment, report.results.decoding),
    "frontier.csv": lambda report: csv_text(report.frontiers) if len(report.frontiers) else None,
    "frontier.md": lambda report: (
        frontier_page(report.frontiers, report.results.experiment) if len(report.frontiers) else None
    ),
}
# Each figure, as NAME.png and NAME.pdf.
FIGURES: dict[str, Callable[[Report], Figure | None]] = {
    "plots/win_rate": lambda report: win_rate_figure(report.leaderboard, report.look),
    "plots/training_curves": lambda report: training_figure(report.results.metrics, report.look),
    "plots/win_rate_vs_kl": lambda report: kl_figure(report.leaderboard, report.look),
    "plots/length": lambda report: length_figure(report.leaderboard, report.look),
    "plots/frontier": lambda report: frontier_figure(report.measures, report.look),
}


def write_report(folder: Path, *, figures: bool = True) -> pd.DataFrame:
    """Rebuild all `TEXTS` and `FIGURES` of a results folder; return the leaderboard. Without `figures` none is drawn.

    Everything is made from the folder's files and is reproducible. An output without numbers is removed, so that one
    from an earlier run is not mistaken for a current one. Raises `UserError` if the folder holds no run, a damaged
    file or results of several judges, or if it cannot be written.
    """
    folder = Path(folder)
    try:
        if folder.is_dir():  # else there is no run, which is said next
            probe(folder / "plots")
        report = _load(folder)
        for name, make in TEXTS.items():
            _write_text(folder / name, make(report))
        for name, draw in FIGURES.items():
            with rc_context(RC):
                figure = draw(report) if figures else None
            _write_figure(folder / name, figure)
    except OSError as error:
        raise UserError(f"cannot write the report into {folder}: {error}") from None
    return report.leaderboard


def print_leaderboard(leaderboard: pd.DataFrame, console: Console) -> None:
    """Print the essential columns, one table per task; at least 100 columns wide if the output is not a terminal."""
    if not console.is_terminal:
        console = Terminal(file=console.file, width=console.width, piped_width=PIPED_WIDTH)
    for table in terminal_tables(leaderboard):
        console.print(table)
        console.print()


def _load(folder: Path) -> Report:
    results = load_results(folder)
    leaderboard, measures = build_leaderboard(results), load_measures(folder)
    frontiers = frontier_table(measures)
    if len(measures):
        leaderboard = with_measures(leaderboard, controlled_columns(measures, frontiers))
    return Report(results, leaderboard, measures, frontiers)


def _write_text(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink(missing_ok=True)
    else:
        write_text(path, text)


def _write_figure(path: Path, figure: Figure | None) -> None:
    path.parent.mkdir(exist_ok=True)
    if figure is None:
        for kind in FORMATS:
            path.with_suffix(f".{kind}").unlink(missing_ok=True)
    else:
        save(figure, path.parent, path.name)
