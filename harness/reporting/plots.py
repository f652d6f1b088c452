"""The figures of a leaderboard: win rates, win rate against KL, and lengths."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from harness.core.records import SFT
from harness.reporting.figure import (
    CHARACTER,
    PANEL_WIDTH,
    PER_LINE,
    REFERENCE,
    STEPS,
    TICKS,
    add_legend,
    grid,
    new_figure,
    place_labels,
    wrapped,
)
from harness.reporting.leaderboard import OK
from harness.reporting.style import GREY, Style, Styles
from harness.reporting.tables import Z, tables

CROWD = 10  # panels of `kl_figure` with more points than this need more room
LABELS = 16  # more points than this are identified by the legend: labels would overlap
# Legend entries besides the losses.
START = {"color": GREY, "linewidth": 0.9, "linestyle": "--"}
EVEN = Line2D([], [], **REFERENCE, label="50 %: even with the baseline")
INTERVAL = Line2D([], [], color=GREY, marker="o", label="mean and its 95 % interval")


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

    Lengths are in characters, since the baseline's responses are not counted in the policy's tokens.
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
    most = max(len(rows) for _, rows in tables(drawn))
    crowded, labelled = most > CROWD, most <= LABELS
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
    add_legend(figure, [INTERVAL, EVEN, *_open_marker(drawn), *(_families if labelled else _points)(drawn, look)])
    if not labelled:
        return figure
    figure.draw_without_rendering()  # labels are placed on a final layout
    figure.set_layout_engine("none")
    for axis, rows in panels:
        _label_points(axis, rows, look)
    return figure


def _panels(leaderboard: pd.DataFrame, width: float, height: float) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """Return a figure with one titled panel per table of the leaderboard, each of this size in inches."""
    titled = list(tables(leaderboard))
    columns = min(PER_LINE, len(titled))
    lines = math.ceil(len(titled) / columns)
    figure = new_figure(width * max(columns, 1.4), height * lines)
    panels = []
    for axis, (title, rows) in zip(grid(figure, lines, columns, len(titled)), titled, strict=True):
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
    """Draw one line per row, the first on top. A row without a number keeps its label, which says why."""
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
    """Return the style of a point, which is filled if its row is complete."""
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


def _points(leaderboard: pd.DataFrame, look: Styles) -> list[Line2D]:
    """Return a legend entry for each point."""
    drawn = set(leaderboard[["loss", "settings"]].itertuples(index=False, name=None))
    return [
        Line2D([], [], color=style.colour, marker=style.marker, linestyle="none", label=style.label)
        for key, style in look.items()
        if key in drawn
    ]


def _crushed(kl: pd.Series) -> bool:
    """Whether one policy is so far away that a linear axis would squeeze the others together."""
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
