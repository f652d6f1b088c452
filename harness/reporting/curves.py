"""The figure of training curves: metrics that are comparable across losses."""

from __future__ import annotations

import math
from itertools import product

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from harness.reporting.figure import (
    PANEL_WIDTH,
    PER_LINE,
    REFERENCE,
    STEPS,
    TICKS,
    add_legend,
    grid,
    new_figure,
    wrapped,
)
from harness.reporting.style import GREY, Style, Styles

DECADES = 1e4  # up to this ratio a logarithmic axis labels 1, 2 and 5 of each decade, above it only the decades
BINS = 40  # a curve of single batches is averaged within at most this many stretches of training
MARKED = 12  # about this many points of a curve carry its marker
CURVES = (  # split, column, factor, label of the axis
    ("dev", "accuracy", 100, "accuracy, %\n(dev pairs)"),
    ("dev", "margin", 1, "margin, nats\n(dev pairs)"),
    ("train", "accuracy", 100, "accuracy, %\n(training batch)"),
    ("train", "margin", 1, "margin, nats\n(training batch)"),
    ("train", "grad_norm", 1, "gradient norm\n(training batch)"),
)
SEEDS = Patch(color=GREY, alpha=0.2, linewidth=0, label="lowest to highest seed")


def training_figure(metrics: pd.DataFrame, look: Styles) -> Figure | None:
    """Draw the training metrics that are comparable across losses: accuracy, margin and gradient norm, never the loss.

    One column of panels per task, or one task's panels side by side. Lines are means over seeds; bands reach from the
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
            low, high = (
                axis.get_ylim()
            )  # over many decades the locator has no room for 2 and 5, and would place no ticks
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


def _curves(axis: Axes, metrics: pd.DataFrame, column: str, factor: float, look: Styles) -> None:
    for key, rows in metrics.dropna(subset=[column]).groupby(["loss", "settings"], sort=False):
        steps = rows["step"]
        if steps.nunique() > BINS:
            width = math.ceil((steps.max() + 1) / BINS)
            steps = (steps // width) * width + (width - 1) / 2
        by_seed = factor * rows.groupby([steps, "seed"])[column].mean().unstack("seed")
        style = look[key]
        mean = by_seed.mean(axis=1)
        apart = math.ceil(len(mean) / MARKED)
        axis.plot(
            mean.index,
            mean,
            color=style.colour,
            linestyle=style.line,
            marker=style.marker,
            markersize=4,
            markevery=apart,
        )
        if by_seed.shape[1] > 1:
            axis.fill_between(
                mean.index, by_seed.min(axis=1), by_seed.max(axis=1), color=style.colour, alpha=0.13, linewidth=0
            )


def _line_handle(style: Style) -> Line2D:
    return Line2D(
        [], [], color=style.colour, linestyle=style.line, marker=style.marker, markersize=4, label=style.label
    )
