"""Reward against KL: the envelope of each method, as a table with intervals, a page and a figure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.core.records import SFT
from harness.evaluation.statistics.frontier import BUDGETS, Policies, frontiers
from harness.evaluation.statistics.intervals import Interval
from harness.reporting.figure import add_legend, grid, new_figure, wrapped
from harness.reporting.measures import GROUP, POLICY_IN_GROUP
from harness.reporting.results import matrix
from harness.reporting.style import GREY, Style, Styles
from harness.reporting.tables import escape, interval_texts, markdown_table

KEYS = {**{f"reward_at_kl_{budget:g}": budget for budget in BUDGETS}, "frontier_area": None}
WIDTH, HEIGHT, PER_LINE = 4.6, 3.8, 2  # size of a panel in inches; panels in a row
START = {"color": GREY, "marker": "*", "markersize": 9}  # the SFT policy
COMMON = {"color": GREY, "linewidth": 0.9, "linestyle": ":"}  # the budget up to which areas are compared


def frontier_table(measures: pd.DataFrame) -> pd.DataFrame:
    """Return one row per method, with intervals.

    The columns are `GROUP`, method, the common budget, the numbers of policies, seeds and prompts, the reach, and each
    of `KEYS` with its interval (`_low`, `_high`) and its difference from the first method (`_difference`, ...).

    `measures` comes from `load_measures`. Only policies that were measured on the same seeds and prompts as the SFT
    policy count.
    """
    rows = []
    for key, group in measures.groupby(GROUP, sort=False):
        methods, start = _policies(group)
        if not methods:
            continue
        by_method, common = frontiers(methods, start)
        for method, frontier in by_method.items():
            row = {**dict(zip(GROUP, key, strict=True)), "method": method, "common_budget": common}
            row |= {"policies": len(methods[method].kl), "seeds": len(start), "prompts": start.shape[1]}
            row["reach"] = methods[method].reach
            for name, budget in KEYS.items():
                row |= _columns(name, frontier.area if budget is None else frontier.at[budget])
                difference = frontier.area_difference if budget is None else frontier.at_difference[budget]
                row |= _columns(f"{name}_difference", difference)
            rows.append(row)
    columns = [*GROUP, "method", "common_budget", "policies", "seeds", "prompts", "reach"]
    columns += [f"{name}{d}{end}" for name in KEYS for d in ("", "_difference") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=columns)


def frontier_page(table: pd.DataFrame, experiment: str) -> str:
    """Return the table of `frontier_table` as a Markdown page, the largest area first."""
    page = [f"# {escape(experiment)}: reward against KL"]
    for key, rows in table.groupby(GROUP, sort=False):
        first = rows.iloc[0]
        page.append(f"## {escape(_title(key))}")
        ordered = rows.sort_values("frontier_area", ascending=False, kind="stable")
        columns = {"loss": ordered["method"]}
        columns |= {f"KL {b:g}": interval_texts(ordered, f"reward_at_kl_{b:g}", "{:.3f}") for b in BUDGETS}
        columns["area"] = interval_texts(ordered, "frontier_area", "{:.3f}")
        columns[f"area - {first['method']}"] = interval_texts(ordered, "frontier_area_difference", "{:+.3f}")
        columns["largest KL"] = [f"{value:.2f}" for value in ordered["reach"]]
        columns["policies"] = [str(value) for value in ordered["policies"]]
        page.append(markdown_table(columns))
        page.append(
            "\n".join(
                [
                    "- KL columns: the reward within a budget of so many nats, on the upper concave envelope of a "
                    "loss's policies (strengths and points of training) and the SFT policy; - where no policy of the "
                    "loss is that far away.",
                    "- Area: mean height of the envelope above the SFT policy's reward for KL from 0 to "
                    f"{first['common_budget']:.2f}, which every loss here reaches.",
                    f"- Brackets: 95 % bootstrap intervals over {first['prompts']} prompts and {first['seeds']} "
                    f"seed{'s' * int(first['seeds'] > 1)}, the same draws for all losses; an interval stands alone "
                    "and is not corrected for several comparisons. An envelope takes the best of noisy means and is "
                    "too high by some of the noise.",
                ]
            )
        )
    return "\n\n".join(page) + "\n"


def frontier_figure(measures: pd.DataFrame, look: Styles) -> Figure | None:
    """Draw each policy's mean reward against its mean KL, and the envelope of each method; None without numbers.

    A method has the style of its first policy in the other figures.
    """
    panels = [(key, *_policies(group)) for key, group in measures.groupby(GROUP, sort=False)]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return None
    names = dict.fromkeys(name for _, methods, _ in panels for name in methods)
    firsts = measures.drop_duplicates("method").set_index("method")
    styles = {name: look[firsts.at[name, "loss"], firsts.at[name, "settings"]] for name in names}
    columns = min(PER_LINE, len(panels))
    figure = new_figure(WIDTH * max(columns, 1.4), HEIGHT * -(-len(panels) // columns))
    axes = grid(figure, -(-len(panels) // columns), columns, len(panels))
    for axis, (key, methods, start) in zip(axes, panels, strict=True):
        _draw(axis, methods, start, styles)
        axis.set_title(wrapped(_title(key), 40))
        axis.set_xlabel("KL to the reference, nats")
        axis.set_ylabel("mean reward")
    handles = [
        Line2D([], [], color=style.colour, marker=style.marker, linestyle=style.line, label=name)
        for name, style in styles.items()
    ]
    add_legend(
        figure,
        [
            *handles,
            Line2D([], [], **START, linestyle="--", linewidth=0.9, label=SFT),
            Line2D([], [], **COMMON, label="the KL that every loss reaches"),
        ],
    )
    return figure


def _draw(axis: Axes, methods: Mapping[str, Policies], start: np.ndarray, styles: Mapping[str, Style]) -> None:
    by_method, common = frontiers(methods, start, resamples=1)
    axis.axhline(start.mean(), color=GREY, linewidth=0.9, linestyle="--")
    axis.axvline(common, **COMMON)
    for name, policies in methods.items():
        frontier, style = by_method[name], styles[name]
        kl, reward = policies.kl.mean(axis=(1, 2)), policies.reward.mean(axis=(1, 2))
        axis.plot(kl, reward, color=style.colour, marker=style.marker, linestyle="none", markersize=3.5, alpha=0.55)
        corners = np.append(frontier.kl, policies.reach), np.append(frontier.reward, frontier.reward[-1])
        axis.plot(*corners, color=style.colour, linestyle=style.line)
    axis.plot([0], [start.mean()], **START, linestyle="none")
    reaches = sorted(policies.reach for policies in methods.values())
    axis.set_xlim(-0.03 * reaches[-1], 1.05 * reaches[-1])
    if reaches[-1] > 4 * BUDGETS[-1]:  # a distant policy would squeeze the others together
        axis.set_xscale("symlog", linthresh=BUDGETS[-1])
        axis.xaxis.set_major_formatter("{x:g}")


def _policies(group: pd.DataFrame) -> tuple[dict[str, Policies], np.ndarray]:
    """Return the policies of each method and the SFT policy's reward, `(seeds, prompts)`, for one group of rows.

    Both are empty if the SFT policy was not measured (its cell failed, or is not done yet).
    """
    start = group[group["loss"] == SFT]
    if start.empty:
        return {}, np.empty((0, 0))
    seeds, ids = sorted(start["seed"].unique()), sorted(start["id"].unique())
    by_method: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    if not seeds:
        return {}, np.empty((0, 0))  # the SFT policy has not been measured yet
    for _, rows in group[group["loss"] != SFT].groupby([*POLICY_IN_GROUP, "at"], sort=False):
        values = tuple(matrix(rows, name, seeds, ids) for name in ("reward", "kl_exact"))
        if not any(np.isnan(value).any() for value in values):
            by_method.setdefault(rows.iloc[0]["method"], []).append(values)
    methods = {
        name: Policies(np.stack([r for r, _ in each]), np.stack([kl for _, kl in each]))
        for name, each in by_method.items()
    }
    return methods, matrix(start, "reward", seeds, ids)


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _title(key: tuple[str, str]) -> str:
    evaluated_on, trained_on = key
    return evaluated_on if evaluated_on == trained_on else f"{evaluated_on} (trained on {trained_on})"
