"""The style of plots: one colour and marker per loss in all figures, and fonts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from matplotlib.colors import to_hex, to_rgb

from harness.core.records import SFT

# Okabe and Ito's colours without the yellow, which is too light for lines, and two of Tol's muted ones.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")  # nine against eight colours: no pair repeats before 72 losses
LINES = ("-", "--", ":", "-.")
GREY = "#4D4D4D"  # of the SFT policy and everything that refers to it
PALEST = 0.6  # share of white in the colour of a loss's last settings

RC = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 3.0,  # long enough to tell dashes from dots
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
    """How one configuration is drawn, and its short names."""

    label: str  # "dpo", or "dpo beta=0.1" where the experiment has several settings of dpo
    values: str  # the hyper-parameters that vary, "0.1" or "0.1, 0.5"; "" where none does
    names: str  # and their names, "beta" or "beta, temperature"
    colour: str
    ink: str  # for text, which needs more contrast
    marker: str
    line: str


Styles = Mapping[tuple[str, str], Style]  # of each (loss, settings)


def styles(cells: pd.DataFrame) -> Styles:
    """Return the style of each (loss, settings), given the cells of an experiment in order.

    Losses differ in colour and marker, by their place in the plan, so a loss added at its end changes no other.
    Settings of one loss differ in shade and line. The label names the hyper-parameters only where they vary. The SFT
    policy is grey and takes none of the colours.
    """
    by_setting = {}
    losses = [loss for loss in cells["loss"].unique() if loss != SFT]
    for index, loss in enumerate([SFT, *losses], start=-1):
        settings = list(cells.loc[cells["loss"] == loss, "settings"].unique())
        shared = set.intersection(*(set(text.split()) for text in settings)) if len(settings) > 1 else set(settings)
        for k, text in enumerate(settings):
            varying = [] if len(settings) == 1 else [part for part in text.split() if part not in shared]
            colour = GREY if loss == SFT else PALETTE[index % len(PALETTE)]
            by_setting[loss, text] = Style(
                label=" ".join([loss, *varying]),
                values=", ".join(part.partition("=")[2] for part in varying),
                names=", ".join(part.partition("=")[0] for part in varying),
                colour=_mixed(colour, 1, PALEST * k / max(1, len(settings) - 1)),
                ink=_mixed(colour, 0, 0.3),
                marker="*" if loss == SFT else MARKERS[index % len(MARKERS)],
                line=LINES[(index // len(PALETTE) + k) % len(LINES)],
            )
    return by_setting


def _mixed(colour: str, other: float, share: float) -> str:
    """Mix a colour with white (`other` = 1) or black (0)."""
    return to_hex([channel + (other - channel) * share for channel in to_rgb(colour)])
