"""How plots look: one colour and marker per loss in all of them, fonts, labels, and files that are written whole."""

from __future__ import annotations

import math
import os
import textwrap
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from harness.core.records import SFT

# Okabe and Ito's colours without the yellow, which is too light for lines, and two of Tol's muted ones.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")  # nine against eight colours: no pair repeats before 72 losses
LINES = ("-", "--", ":", "-.")
GREY = "#4D4D4D"  # of the SFT policy and of what refers to it
DISTANCES = (6, 10, 15, 22, 30, 40)  # of a label from its point, in points
NEAR = 10  # a label farther off than this gets a line to its point
DIRECTIONS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))  # right and up
CHARACTER = 0.075  # about the width of a character, in inches
PALEST = 0.6  # how far towards white the last settings of a loss go

RC = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#808080",
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "pdf.fonttype": 42,  # TrueType, which publishers ask for
    "text.parse_math": False,  # a "$" in a name is a dollar
}


@dataclass(frozen=True)
class Style:
    """How one configuration is drawn, and what it is called where space is short."""

    label: str  # "dpo", or "dpo beta=0.1" where the experiment has several settings of dpo
    values: str  # the hyper-parameters that vary, "0.1" or "0.1, 0.5"; "" where none does
    names: str  # and what they are called, "beta" or "beta, temperature"
    colour: str
    ink: str  # for text, which needs more contrast
    marker: str
    line: str


def styles(cells: pd.DataFrame) -> dict[tuple[str, str], Style]:
    """Return the style of each (loss, settings), given the cells of an experiment in their order.

    Losses differ in colour and marker, settings of one loss in shade and line. The label names the hyper-parameters
    only where they vary. The SFT policy is grey and takes none of the colours.
    """
    found = {}
    losses = [loss for loss in cells["loss"].unique() if loss != SFT]
    for index, loss in enumerate([SFT, *losses], start=-1):
        settings = list(cells.loc[cells["loss"] == loss, "settings"].unique())
        shared = set.intersection(*(set(text.split()) for text in settings)) if len(settings) > 1 else set(settings)
        for k, text in enumerate(settings):
            varying = [] if len(settings) == 1 else [part for part in text.split() if part not in shared]
            colour = GREY if loss == SFT else PALETTE[index % len(PALETTE)]
            found[loss, text] = Style(
                label=" ".join([loss, *varying]),
                values=", ".join(part.partition("=")[2] for part in varying),
                names=", ".join(part.partition("=")[0] for part in varying),
                colour=_mixed(colour, 1, PALEST * k / max(1, len(settings) - 1)),
                ink=_mixed(colour, 0, 0.3),
                marker="*" if loss == SFT else MARKERS[index % len(MARKERS)],
                line=LINES[(index // len(PALETTE) + k) % len(LINES)],
            )
    return found


def wrapped(text: str, width: int) -> str:
    """Return text broken into lines of at most `width` characters."""
    return "\n".join(textwrap.wrap(text, width)) or text


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, laid out so that no label is cut off."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def grid(figure: Figure, lines: int, columns: int, count: int) -> list[Axes]:
    """Return the first `count` axes of a grid, line by line, without the rest."""
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for unused in axes[count:]:
        unused.remove()
    return list(axes[:count])


def add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Put a legend below the panels, in even columns as wide as fit, and make the figure higher by it."""
    widest = max(len(handle.get_label()) for handle in handles) * CHARACTER + 0.6
    lines = math.ceil(len(handles) / max(1, int(figure.get_figwidth() / widest)))
    figure.legend(handles=handles, loc="outside lower center", ncols=math.ceil(len(handles) / lines))
    figure.set_figheight(figure.get_figheight() + 0.2 + 0.19 * lines)


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure as PNG (200 dpi) and PDF, each whole or not at all, without a date: the same twice."""
    with rc_context(RC):
        for kind, metadata in (("png", {}), ("pdf", {"CreationDate": None})):
            temporary = folder / f".{name}.{uuid.uuid4().hex[:8]}.{kind}"
            try:
                figure.savefig(temporary, dpi=200, metadata=metadata)
                os.replace(temporary, folder / f"{name}.{kind}")
            finally:
                temporary.unlink(missing_ok=True)


def place_labels(
    axis: Axes, points: Sequence[tuple[float, float]], labels: Sequence[tuple[str, str]], keep_clear: Iterable[Bbox]
) -> None:
    """Write (text, colour) beside each point where it covers least: of other labels above all, and of `keep_clear`.

    `points` are in data coordinates, `keep_clear` in pixels. The layout of the figure must be final. A label that has
    to go far gets a line to its point.
    """
    renderer = axis.figure.canvas.get_renderer()
    frame = axis.get_window_extent(renderer)
    taken = list(keep_clear)
    unit = axis.figure.dpi / 72  # pixels in a point
    for (x, y), (text, colour) in zip(points, labels, strict=True):
        anchor_x, anchor_y = axis.transData.transform((x, y))
        note = axis.annotate(
            text, (x, y), (0, 0), textcoords="offset points", fontsize=8, color=colour, annotation_clip=False
        )
        note.set_in_layout(False)
        size = note.get_window_extent(renderer)
        options = []
        for distance, (right, up) in product(DISTANCES, DIRECTIONS):
            left = anchor_x + distance * unit * right - size.width * (1 - right) / 2
            bottom = anchor_y + distance * unit * up - size.height * (1 - up) / 2
            box = Bbox.from_bounds(left, bottom, size.width, size.height)
            outside = size.width * size.height - _overlap(box, frame)
            covered = sum(_overlap(box, other) for other in taken) + 5 * outside
            options.append((covered / unit**2 + 6 * distance, distance, box))
        _, distance, box = min(options, key=lambda option: option[0])
        note.set_position(((box.x0 - anchor_x) / unit, (box.y0 - anchor_y) / unit))
        note.set_path_effects([withStroke(linewidth=2, foreground="white")])
        if distance > NEAR:
            near = np.clip((anchor_x, anchor_y), (box.x0, box.y0), (box.x1, box.y1))
            end_x, end_y = axis.transData.inverted().transform(near)
            axis.plot([x, end_x], [y, end_y], color=colour, linewidth=0.6, zorder=1, scalex=False, scaley=False)
        taken += [box] * 4


def _overlap(a: Bbox, b: Bbox) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return width * height if width > 0 and height > 0 else 0.0


def _mixed(colour: str, other: float, share: float) -> str:
    """Mix a colour with white (`other` = 1) or black (0)."""
    return to_hex([channel + (other - channel) * share for channel in to_rgb(colour)])
