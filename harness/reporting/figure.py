"""What all figures use: panels, legends, labels that do not overlap, and files that are never left incomplete."""

from __future__ import annotations

import math
import os
import textwrap
import uuid
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from harness.reporting.style import RC

FORMATS = {"png": {}, "pdf": {"CreationDate": None}}  # with metadata that make the files reproducible
DISTANCES = (6, 10, 15, 22, 30, 40)  # of a label from its point, in points
NEAR = 10  # a label farther off than this gets a line to its point
DIRECTIONS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))  # (right, up)
CHARACTER = 0.075  # approximate width of a character, in inches
HANDLE = 0.75  # width of a legend's entry besides its text, in inches
PANEL_WIDTH = 3.4  # inches
PER_LINE = 3  # panels in a row
TICKS = 5  # most intervals between ticks: with more, labels would touch
STEPS = (1, 2, 2.5, 5, 10)  # steps between ticks, times a power of ten
REFERENCE = {
    "color": "black",
    "linewidth": 0.9,
    "linestyle": ":",
}  # the line of the value that others are compared with


def wrapped(text: str, width: int) -> str:
    """Return text broken into lines of at most `width` characters."""
    return "\n".join(textwrap.wrap(text, width)) or text


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, laid out so that no label is cut off."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def grid(figure: Figure, lines: int, columns: int, count: int) -> list[Axes]:
    """Return the first `count` axes of a grid, row by row; the others are removed."""
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for unused in axes[count:]:
        unused.remove()
    return list(axes[:count])


def add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Put a legend below the panels, in as many columns as fit, and make the figure higher to leave room for it."""
    widths = [len(str(handle.get_label())) * CHARACTER + HANDLE for handle in handles]

    def width(columns: int) -> float:
        return sum(column.max() for column in np.array_split(widths, columns))  # as matplotlib fills them

    columns = next((k for k in range(len(handles), 1, -1) if width(k) <= figure.get_figwidth()), 1)
    lines = math.ceil(len(handles) / columns)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    figure.set_figheight(figure.get_figheight() + 0.2 + 0.19 * lines)


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure as PNG (200 dpi) and PDF, never incomplete and without a date, so that files are reproducible."""
    with rc_context(RC):
        for kind, metadata in FORMATS.items():
            temporary = folder / f".{name}.{uuid.uuid4().hex[:8]}.{kind}"
            try:
                figure.savefig(temporary, dpi=200, metadata=metadata)
                os.replace(temporary, folder / f"{name}.{kind}")
            finally:
                temporary.unlink(missing_ok=True)


def place_labels(
    axis: Axes, points: Sequence[tuple[float, float]], labels: Sequence[tuple[str, str]], keep_clear: Iterable[Bbox]
) -> None:
    """Write (text, colour) beside each point, where it overlaps least with other labels and with `keep_clear`.

    `points` are in data coordinates, `keep_clear` in pixels. Overlap with other labels counts most. The layout of the
    figure must be final. A label far from its point gets a line to it.
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
