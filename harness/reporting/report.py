"""The one entry point of reporting: a results folder in; leaderboard, per-prompt table and plots out."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console

from harness.core.errors import UserError
from harness.core.store import write_text
from harness.reporting.frontier import frontier_figure, frontier_page, frontier_table
from harness.reporting.leaderboard import build_leaderboard
from harness.reporting.measures import controlled_columns, load_measures, with_measures
from harness.reporting.plots import remove_figures, write_figure, write_plots
from harness.reporting.results import load_results
from harness.reporting.tables import markdown, terminal_tables

PIPED_WIDTH = 100  # characters


def write_report(folder: Path, *, figures: bool = True) -> pd.DataFrame:
    """Rebuild leaderboard.csv, leaderboard.md, prompts.csv and plots/ of a results folder; return the leaderboard.

    Where a reward is known there are frontier.csv, frontier.md and a figure of it too. Without `figures` nothing is
    drawn, and plots/ is emptied: what an earlier report drew shows other numbers.

    Everything is made from what the folder holds, and comes out the same twice. Raises `UserError` where the folder
    holds no run, a damaged file or results of several judges, or cannot be written.
    """
    folder = Path(folder)
    results = load_results(folder)
    leaderboard = build_leaderboard(results)
    measured = load_measures(folder)
    frontiers = frontier_table(measured)
    if len(measured):
        leaderboard = with_measures(leaderboard, controlled_columns(measured, frontiers))
    page = markdown(leaderboard, results.experiment, results.decoding)
    try:
        write_text(folder / "leaderboard.csv", _csv(leaderboard))
        write_text(folder / "prompts.csv", _csv(results.prompts))
        write_text(folder / "leaderboard.md", page)
        if len(frontiers):
            write_text(folder / "frontier.csv", _csv(frontiers))
            write_text(folder / "frontier.md", frontier_page(frontiers, results.experiment))
        if not figures:
            remove_figures(folder / "plots")
        else:
            write_plots(results, leaderboard, folder / "plots")
            if len(frontiers):
                write_figure(folder / "plots", "frontier", lambda: frontier_figure(measured))
    except OSError as error:
        raise UserError(f"cannot write the report into {folder}: {error}") from None
    return leaderboard


def print_leaderboard(leaderboard: pd.DataFrame, console: Console) -> None:
    """Print the essential columns, one table per task; at least 100 columns wide where the output is no terminal."""
    if not console.is_terminal:
        console = Console(file=console.file, width=max(console.width, PIPED_WIDTH))
    for table in terminal_tables(leaderboard):
        console.print(table)
        console.print()


def _csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, lineterminator="\n")
