"""Measurements for tasks with a known reward: rows of reward and divergence, and their leaderboard columns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd

from harness.core.record_files import is_of_samples, manifest_of, read_records
from harness.core.records import MEASURE, SAMPLE, Measure, cell_folder, settings_text, stage_folder
from harness.evaluation.statistics.frontier import BUDGETS
from harness.evaluation.statistics.intervals import mean_with_error
from harness.reporting.results import matrix, read_plan

GROUP = ["evaluated_on", "trained_on"]  # policies that share prompts, reward and training data
POLICY_IN_GROUP = [*GROUP, "loss", "settings"]
STRENGTHS = ("beta", "tau")  # the hyper-parameters that vary within a method
MEASURED = ["at", "id", "response", "tokens", "reward", "kl", "kl_exact", "entropy", "reference_logp"]

# Columns of leaderboard.csv for tasks with a known reward; empty for others.
COLUMNS = {
    "reward": "mean reward of the policy's responses, where the reward is known (task sentiment)",
    "reward_se": "its standard error over prompts",
    "kl_exact": "mean KL of policy to reference on the policy's responses, each next token's KL taken exactly, in nats",
    "kl_exact_se": "its standard error over prompts",
    "entropy": "the policy's entropy per token on its own responses, in nats",
    "distinct_1": "number of different words in the responses over the number of words (mean over seeds)",
    "distinct_2": "the same for pairs of neighbouring words",
    "reference_perplexity": "perplexity of the responses under the reference",
    **{
        f"reward_at_kl_{budget:g}": (
            f"reward that the loss's frontier reaches within a KL of {budget:g} nats (see frontier.md)"
        )
        for budget in BUDGETS
    },
    "frontier_area": (
        "mean height of the loss's frontier above the SFT policy's reward, up to the KL that all losses reach"
    ),
}


def load_measures(folder: Path) -> pd.DataFrame:
    """Return the measured rows of a results folder's cells: `POLICY_IN_GROUP`, seed, method, and `MEASURED`.

    `at` is the share of the training steps that the policy had taken; `method` is the loss with all settings except
    its strength. Measurements of outdated samples are left out. Raises `UserError` for a damaged file.
    """
    frames = []
    for cell in read_plan(folder).cells:
        for task in cell.evaluated_on:
            path = cell_folder(folder, cell.key)
            measured = path / stage_folder(MEASURE, task)
            if not _current(measured, path / stage_folder(SAMPLE, task)):
                continue
            method = {name: value for name, value in cell.settings.items() if name not in STRENGTHS}
            frames.append(
                pd.DataFrame(read_records(Measure, measured), columns=[field.name for field in fields(Measure)])[
                    MEASURED
                ].assign(
                    evaluated_on=task,
                    trained_on=cell.trained_on,
                    loss=cell.loss,
                    settings=settings_text(cell.settings),
                    seed=cell.seed,
                    method=f"{cell.loss} {settings_text(method)}".strip(),
                )
            )
    columns = [*POLICY_IN_GROUP, "seed", "method", *MEASURED]
    rows = pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)
    return rows.assign(method=rows["method"].map(_short(rows["method"].unique())))


def _short(methods: Iterable[str]) -> dict[str, str]:
    """Map each method to its name without the settings that all methods of the same loss share."""
    by_loss: dict[str, list[list[str]]] = {}
    for loss, *settings in map(str.split, methods):
        by_loss.setdefault(loss, []).append(settings)
    return {
        " ".join([loss, *settings]): " ".join(
            [loss, *(s for s in settings if any(s not in other for other in variants))]
        )
        for loss, variants in by_loss.items()
        for settings in variants
    }


def controlled_columns(measures: pd.DataFrame, frontiers: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of `COLUMNS` for each policy at the end of its training, with `POLICY_IN_GROUP` beside them.

    `frontiers` is the table of `harness.reporting.frontier`.
    """
    reached = frontiers.set_index([*GROUP, "method"])
    rows = []
    for key, group in measures[measures["at"] == 1.0].groupby(POLICY_IN_GROUP, sort=False):
        seeds, ids = sorted(group["seed"].unique()), sorted(group["id"].unique())
        reward, reward_error = mean_with_error(matrix(group, "reward", seeds, ids))
        kl, kl_error = mean_with_error(matrix(group, "kl_exact", seeds, ids))
        tokens = group["tokens"].sum()
        row = {
            **dict(zip(POLICY_IN_GROUP, key, strict=True)),
            "reward": reward,
            "reward_se": reward_error,
            "kl_exact": kl,
            "kl_exact_se": kl_error,
            "entropy": group["entropy"].sum() / tokens,
            "distinct_1": _by_seed(group, 1),
            "distinct_2": _by_seed(group, 2),
            "reference_perplexity": math.exp(-group["reference_logp"].sum() / tokens),
        }
        if (method := (*key[:2], group.iloc[0]["method"])) in reached.index:
            row |= {name: reached.loc[method, name] for name in COLUMNS if name in reached.columns}
        rows.append(row)
    return pd.DataFrame(rows, columns=[*POLICY_IN_GROUP, *COLUMNS])


def with_measures(leaderboard: pd.DataFrame, columns: pd.DataFrame) -> pd.DataFrame:
    """Return the leaderboard with the values of `controlled_columns` in its rows."""
    named = columns.rename(columns={"evaluated_on": "task"})
    keys = ["task", *POLICY_IN_GROUP[1:]]
    joined = leaderboard.drop(columns=list(COLUMNS)).merge(named, on=keys, how="left", validate="many_to_one")
    return joined[list(leaderboard.columns)]


def distinct(texts: Iterable[str], n: int) -> float:
    """Return the share of distinct runs of n words among all runs of n words; NaN if there is none."""
    seen, total = set(), 0
    for text in texts:
        words = text.split()
        runs = list(zip(*(words[k:] for k in range(n)), strict=False))
        seen.update(runs)
        total += len(runs)
    return len(seen) / total if total else math.nan


def _by_seed(group: pd.DataFrame, n: int) -> float:
    return float(np.mean([distinct(part["response"], n) for _, part in group.groupby("seed")]))


def _current(measured: Path, sampled: Path) -> bool:
    """Whether there is a measurement, and it is of the current samples."""
    made = manifest_of(measured)
    samples = manifest_of(sampled) if made else None
    return made is not None and samples is not None and is_of_samples(made, samples)
