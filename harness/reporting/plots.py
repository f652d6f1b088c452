"""The figures of an experiment: win rates, training curves, win rate against KL, and lengths. PNG and PDF."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from harness.core.records import SFT
from harness.reporting.leaderboard import OK
from harness.reporting.results import Results
from harness.reporting.style import (
    CHARACTER,
    GREY,
    RC,
    Style,
    add_legend,
    grid,
    new_figure,
    place_labels,
    save,
    styles,
    wrapped,
)
from harness.reporting.tables import Z, tables

Styles = Mapping[tuple[str, str], Style]

PANEL_WIDTH = 3.4  # inches
DECADES = 1e4  # up to here a logarithmic axis names 1, 2 and 5 of each decade, beyond it the decades alone
PER_LINE = 3  # panels beside each other
TICKS = 5  # intervals between ticks at most: more would touch
STEPS = (1, 2, 5, 10)  # what ticks count by
BINS = 40  # a curve of single batches is averaged over so many stretches of training at most
CROWD = 10  # more points than this in a panel of `kl_figure` need more room
CURVES = (  # split, column, factor, label of the axis
    ("dev", "accuracy", 100, "accuracy, %\n(dev pairs)"),
    ("dev", "margin", 1, "margin, nats\n(dev pairs)"),
    ("train", "accuracy", 100, "accuracy, %\n(training batch)"),
    ("train", "margin", 1, "margin, nats\n(training batch)"),
    ("train", "grad_norm", 1, "gradient norm\n(training batch)"),
)
# What legends explain besides the losses.
REFERENCE = {"color": "black", "linewidth": 0.9, "linestyle": ":"}
START = {"color": GREY, "linewidth": 0.9, "linestyle": "--"}
EVEN = Line2D([], [], **REFERENCE, label="50 %: even with the baseline")
SEEDS = Patch(color=GREY, alpha=0.2, linewidth=0, label="lowest to highest seed")
INTERVAL = Line2D([], [], color=GREY, marker="o", label="mean and its 95 % interval")


def write_plots(results: Results, leaderboard: pd.DataFrame, folder: Path) -> list[str]:
    """Write every figure that there are numbers for into `folder`, and return their names.

    A figure without numbers is removed, so that none from an earlier run is taken for one of this.
    """
    folder.mkdir(parents=True, exist_ok=True)
    look = styles(results.cells)
    figures: dict[str, Callable[[], Figure | None]] = {
        "win_rate": lambda: win_rate_figure(leaderboard, look),
        "training_curves": lambda: training_figure(results.metrics, look),
        "win_rate_vs_kl": lambda: kl_figure(leaderboard, look),
        "length": lambda: length_figure(leaderboard, look),
    }
    return [name for name, draw in figures.items() if write_figure(folder, name, draw)]


def write_figure(folder: Path, name: str, draw: Callable[[], Figure | None]) -> bool:
    """Write one figure, or remove it where there is none; return whether there is one."""
    with rc_context(RC):
        figure = draw()
    if figure is None:
        for kind in ("png", "pdf"):
            (folder / f"{name}.{kind}").unlink(missing_ok=True)
        return False
    save(figure, folder, name)
    return True


def remove_figures(folder: Path) -> None:
    """Remove every figure that is in `folder`."""
    for file in (*folder.glob("*.png"), *folder.glob("*.pdf")):
        file.unlink()


def win_rate_figure(leaderboard: pd.DataFrame, look: Styles) -> Figure | None:
    """Draw the win rate of each row with its interval: one panel per task, the best on top."""
    if not leaderboard["win_rate"].notna().any():
        return None
    figure, panels = _dot_panels(leaderboard, look)
    for axis, rows in panels:
        axis.axvline(50, **REFERENCE)
        for start in rows.loc[rows["loss"] == SFT, "win_rate"].dropna():
            axis.axvline(start, **START)
        _dots(axis, rows, look, rows["win_rate"], rows["win_rate_low"], rows["win_rate_high"])
        axis.set_xlabel(wrapped(f"win rate (%) against {rows.iloc[0]['baseline']}", 34))
    add_legend(figure, [INTERVAL, EVEN, Line2D([], [], **START, label="the SFT policy"), *_open_marker(leaderboard)])
    return figure


def length_figure(leaderboard: pd.DataFrame, look: Styles) -> Figure | None:
    """Draw the mean length of each row's responses, in the order of `win_rate_figure`, with the baseline's as a line.

    In characters, since the baseline's responses are not counted in the policy's tokens.
    """
    if not leaderboard["mean_characters"].notna().any():
        return None
    figure, panels = _dot_panels(leaderboard, look)
    for axis, rows in panels:
        axis.axvline(rows["baseline_characters"].max(), **REFERENCE)
        mean, half = rows["mean_characters"], Z * rows["mean_characters_se"]
        _dots(axis, rows, look, mean, mean - half, mean + half)
        axis.set_xlabel("mean length, characters")
    baseline = Line2D([], [], **REFERENCE, label="the baseline's responses")
    add_legend(figure, [INTERVAL, baseline, *_open_marker(leaderboard)])
    return figure


def kl_figure(leaderboard: pd.DataFrame, look: Styles) -> Figure | None:
    """Draw win rate against the KL to the reference, one panel per task, with 95 % intervals of both."""
    drawn = leaderboard.dropna(subset=["win_rate", "kl"])
    if drawn.empty:
        return None
    crowded = max(len(rows) for _, rows in tables(drawn)) > CROWD
    figure, panels = _panels(drawn, PANEL_WIDTH * (1.3 if crowded else 1), 4.2 if crowded else 3.1)
    for axis, rows in panels:
        axis.axhline(50, **REFERENCE)
        for row in rows.itertuples():
            axis.errorbar(
                row.kl,
                row.win_rate,
                xerr=np.nan_to_num(Z * row.kl_se),
                yerr=[[row.win_rate - row.win_rate_low], [row.win_rate_high - row.win_rate]],
                elinewidth=0.9,
                **_point(look[row.loss, row.settings], row.status),
            )
        axis.margins(x=0.2, y=0.1)
        axis.xaxis.set_major_locator(MaxNLocator(TICKS, steps=STEPS))
        if _crushed(rows["kl"]):
            axis.set_xscale("symlog", linthresh=max(1.0, float(rows["kl"].abs().median())))
            axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel("KL to the reference, nats")
        axis.set_ylabel(wrapped(f"win rate (%) against {rows.iloc[0]['baseline']}", 32))
    add_legend(figure, [INTERVAL, EVEN, *_open_marker(drawn), *_families(drawn, look)])
    figure.draw_without_rendering()  # the layout must stand before labels are placed
    figure.set_layout_engine("none")
    for axis, rows in panels:
        _label_points(axis, rows, look)
    return figure


def training_figure(metrics: pd.DataFrame, look: Styles) -> Figure | None:
    """Draw what compares across losses while they train: accuracy, margin and gradient norm, never the loss itself.

    One column of panels per task, or one task's panels side by side. Lines are means over seeds, bands reach from the
    lowest seed to the highest.
    """
    curves = [curve for curve in CURVES if metrics.loc[metrics["split"] == curve[0], curve[1]].notna().any()]
    if not curves:
        return None
    tasks = list(metrics["trained_on"].unique())
    columns = len(tasks) if len(tasks) > 1 else min(PER_LINE, len(curves))
    lines = math.ceil(len(curves) * len(tasks) / columns)
    figure = new_figure(PANEL_WIDTH * columns, 1.7 * lines + 0.5)
    axes = grid(figure, lines, columns, len(curves) * len(tasks))
    for axis, ((split, column, factor, label), task) in zip(axes, product(curves, tasks), strict=True):
        rows = metrics[(metrics["split"] == split) & (metrics["trained_on"] == task)]
        _curves(axis, rows, column, factor, look)
        last = max(1, metrics["step"].max())
        axis.set_xlim(-0.03 * last, 1.03 * last)
        axis.xaxis.set_major_locator(MaxNLocator(TICKS, steps=STEPS, integer=True))
        axis.set_ylabel(label)
        if column == "grad_norm":
            axis.set_yscale("log")
            low, high = axis.get_ylim()  # over many decades the locator has no room for 2 and 5, and would give none
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < DECADES * low else (1,)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
        else:
            axis.axhline(50 if column == "accuracy" else 0, **REFERENCE)
        if label == curves[-1][3] or len(tasks) == 1:
            axis.set_xlabel("optimiser step")
        if label == curves[0][3] and len(tasks) > 1:
            axis.set_title(wrapped(task, 30))
    shown = set(metrics[["loss", "settings"]].itertuples(index=False, name=None))
    handles = [_line_handle(style) for key, style in look.items() if key in shown]
    add_legend(figure, [*handles, *([SEEDS] if metrics["seed"].nunique() > 1 else [])])
    return figure


def _panels(leaderboard: pd.DataFrame, width: float, height: float) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """Return a figure with one titled panel per table of the leaderboard, each of this size in inches."""
    found = list(tables(leaderboard))
    columns = min(PER_LINE, len(found))
    lines = math.ceil(len(found) / columns)
    figure = new_figure(width * max(columns, 1.4), height * lines)
    panels = []
    for axis, (title, rows) in zip(grid(figure, lines, columns, len(found)), found, strict=True):
        axis.set_title(wrapped(title, 30))
        panels.append((axis, rows))
    return figure, panels


def _dot_panels(leaderboard: pd.DataFrame, look: Styles) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """Return panels for `_dots`: wide enough for the labels, high enough for the rows."""
    labels = [_dot_label(row, look).split("\n") for row in leaderboard.itertuples()]
    width = 2.1 + CHARACTER * max(len(line) for lines in labels for line in lines)
    line = 0.25 if max(map(len, labels)) == 1 else 0.36
    return _panels(leaderboard, max(width, PANEL_WIDTH), 0.9 + line * max(len(rows) for _, rows in tables(leaderboard)))


def _dot_label(row: NamedTuple, look: Styles) -> str:
    label = look[row.loss, row.settings].label
    return wrapped(label if row.status == OK else f"{label} ({row.status.partition(':')[0]})", 28)


def _dots(axis: Axes, rows: pd.DataFrame, look: Styles, values: pd.Series, lows: pd.Series, highs: pd.Series) -> None:
    """Draw one line per row, the first on top; a row without a number keeps its label, which says why."""
    for height, (row, value, low, high) in enumerate(zip(rows.itertuples(), values, lows, highs, strict=True)):
        if value == value:
            error = np.nan_to_num([[value - low], [high - value]])
            axis.errorbar(value, height, xerr=error, elinewidth=1.4, **_point(look[row.loss, row.settings], row.status))
    axis.set_yticks(range(len(rows)), [_dot_label(row, look) for row in rows.itertuples()])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.08)
    axis.xaxis.set_major_locator(MaxNLocator(TICKS, steps=STEPS))


def _point(style: Style, status: str) -> dict:
    """Return how a point is drawn: filled where its row is complete."""
    face = style.colour if status == OK else "white"
    size = 8 if style.marker == "*" else None
    return {
        "color": style.colour,
        "marker": style.marker,
        "markerfacecolor": face,
        "markersize": size,
        "linestyle": "none",
    }


def _open_marker(leaderboard: pd.DataFrame) -> list[Line2D]:
    if (leaderboard["status"] == OK).all():
        return []
    return [
        Line2D(
            [],
            [],
            color=GREY,
            marker="o",
            markerfacecolor="white",
            linestyle="none",
            label="judgements or seeds missing",
        )
    ]


def _families(leaderboard: pd.DataFrame, look: Styles) -> list[Line2D]:
    """Return a legend entry for each loss whose points are labelled with the values of its hyper-parameters."""
    drawn = set(leaderboard["loss"])
    first = {loss: style for (loss, _), style in reversed(look.items()) if loss in drawn and style.values}
    return [
        Line2D([], [], color=style.colour, marker=style.marker, linestyle="none", label=f"{loss}: {style.names}")
        for loss, style in reversed(first.items())
    ]


def _line_handle(style: Style) -> Line2D:
    return Line2D(
        [], [], color=style.colour, linestyle=style.line, marker=style.marker, markersize=4, label=style.label
    )


def _crushed(kl: pd.Series) -> bool:
    """Say whether one policy is so far away that a linear axis would press the others together."""
    distances = kl.abs()[kl.abs() > 0]
    return len(distances) > 2 and distances.max() > 20 * max(1.0, distances.median())


def _label_points(axis: Axes, rows: pd.DataFrame, look: Styles) -> None:
    points = list(rows[["kl", "win_rate"]].itertuples(index=False, name=None))
    clear = []
    for row in rows.itertuples():
        half = np.nan_to_num(Z * row.kl_se)
        ends = [(row.kl - half, row.win_rate_low), (row.kl + half, row.win_rate_high), (row.kl, row.win_rate)]
        (x0, y0), (x1, y1), (x, y) = axis.transData.transform(ends)
        clear += [
            Bbox([[x0, y - 2], [x1, y + 2]]),
            Bbox([[x - 2, y0], [x + 2, y1]]),
            *[Bbox([[x - 7, y - 7], [x + 7, y + 7]])] * 3,
        ]
    drawn = [look[row.loss, row.settings] for row in rows.itertuples()]
    place_labels(axis, points, [(style.values or style.label, style.ink) for style in drawn], clear)


def _curves(axis: Axes, metrics: pd.DataFrame, column: str, factor: float, look: Styles) -> None:
    for key, rows in metrics.dropna(subset=[column]).groupby(["loss", "settings"], sort=False):
        steps = rows["step"]
        if steps.nunique() > BINS:
            width = math.ceil((steps.max() + 1) / BINS)
            steps = (steps // width) * width + (width - 1) / 2
        by_seed = factor * rows.groupby([steps, "seed"])[column].mean().unstack("seed")
        style = look[key]
        mean = by_seed.mean(axis=1)
        few = {"marker": style.marker, "markersize": 4} if len(mean) <= 12 else {}
        axis.plot(mean.index, mean, color=style.colour, linestyle=style.line, **few)
        if by_seed.shape[1] > 1:
            axis.fill_between(
                mean.index, by_seed.min(axis=1), by_seed.max(axis=1), color=style.colour, alpha=0.13, linewidth=0
            )
