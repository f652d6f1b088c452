"""The leaderboard: one row per task, loss and hyper-parameters, over seeds, as a pandas frame."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from harness.core.errors import UserError
from harness.core.records import SFT
from harness.evaluation.statistics.intervals import (
    UNKNOWN,
    Interval,
    coverage,
    flip_rate,
    mean_of_seeds,
    mean_with_error,
    paired_difference,
    win_rate,
)
from harness.reporting import measures
from harness.reporting.length_control import Controlled, length_controlled_rates
from harness.reporting.results import FAILED, NOT_RUN, TABLE, Results, matrix

OK, INCOMPLETE = "ok", "incomplete"

# The columns of leaderboard.csv in order, with their meaning. Intervals are 95 % intervals.
COLUMNS = {
    "task": "the task whose test prompts the policy was sampled on",
    "trained_on": "the task whose preferences the policy was trained on",
    "rank": (
        "place by win rate among the rows with status ok of the same task and trained_on; equal win rates share one"
    ),
    "loss": "registered name of the loss; sft is the policy that every loss starts from",
    "settings": "the loss's hyper-parameters",
    "reduction": "how the log-probs of a completion's tokens enter the loss: sum, mean or token (each by itself)",
    "data": "what the loss trains on: paired or unpaired preferences",
    "paper": "arXiv number of the paper that the loss is from",
    "seeds": "the seeds that the experiment asks for",
    "status": (
        "ok; incomplete: a judgement is missing (coverage below 1); not run yet; "
        "failed: which stage of which seed, and why"
    ),
    "win_rate": (
        "mean preference for the policy's response over the baseline's, in %; "
        "a tie is half a win, and a missing judgement is left out"
    ),
    "win_rate_low": "lower end of its bootstrap interval over prompts and seeds",
    "win_rate_high": "upper end of it",
    "win_rate_se": "standard error of the win rate over prompts, in percentage points",
    "lc_win_rate": (
        "length-controlled win rate: what the win rate would be if the responses were as long as the baseline's "
        "(see below), in %"
    ),
    "lc_win_rate_low": "lower end of its bootstrap interval over prompts and seeds",
    "lc_win_rate_high": "upper end of it",
    "lc_difficulty": (
        "where the difficulties of its prompts are from: fitted to this experiment's judgements; "
        "on AlpacaEval official, or estimated (the packaged estimate of the official ones)"
    ),
    "n": "number of judgements that carry a preference, over all seeds",
    "coverage": "n over the number of judgements that the experiment asks for (prompts x seeds)",
    "vs_sft": "win rate minus that of the SFT row, in percentage points, on the prompts that both were judged on",
    "vs_sft_low": "lower end of its interval, paired on prompts",
    "vs_sft_high": "upper end of it",
    "flip_rate": (
        "share of judgements whose verdict changed with the order of the two responses; "
        "empty where the judge has no order"
    ),
    "first_rate": (
        "share of verdicts that went to the response shown first, over both orders: 50 % is no bias; "
        "empty where the judge has no order"
    ),
    "graded_rate": (
        "share of verdicts that the endpoint's log-probs grade between 0 and 1, the others are 0 or 1; "
        "empty where the judge asks no endpoint for log-probs"
    ),
    "judge_name": "the judge's name in a panel of several; empty where the experiment has one",
    "judge": "name, version and template of the judge",
    "judge_date": "day of the judgements, or the first and the last day",
    "judge_agreement": "the judge's accuracy on pairs with known preference that it had not seen",
    "judge_agreement_low": "lower end of its interval",
    "judge_agreement_high": "upper end of it",
    "judge_agreement_n": "number of those pairs",
    "judge_agreement_labels": "whose preferences those are",
    "judge_check": (
        "its accuracy on other labelled data, by judge-check, with the files below results/; or that none was run"
    ),
    "baseline": "what the policy's responses were judged against",
    "mean_tokens": "mean length of the policy's responses in tokens",
    "mean_characters": "mean length of the policy's responses in characters",
    "mean_characters_se": "its standard error over prompts",
    "baseline_characters": "mean length of the baseline's responses in characters",
    "finished": "share of responses that ended by themselves, not at the limit of new tokens",
    "dev_accuracy": (
        "share of dev pairs whose chosen response has the higher log-ratio to the reference, after training; "
        "a tie within rounding counts 1/2"
    ),
    "dev_margin": "mean chosen minus rejected log-ratio on the dev pairs, after training, in nats",
    "kl": (
        "mean log-ratio of policy to reference on the policy's responses, in nats: the sequence KL where sampling is "
        "untruncated (temperature 1, top_p 1), near it and possibly below 0 where not"
    ),
    "kl_se": "its standard error over prompts",
    "examples": (
        "responses trained on: two for each pair, for a listwise loss all of its list "
        "(this column and those below: mean over seeds)"
    ),
    "tokens": "tokens trained on",
    "steps": "optimiser steps",
    "forward_passes": "sequences passed through the policy in training",
    "train_seconds": "wall time of training",
    **measures.COLUMNS,
    "cells": "keys of the cells behind the row, in the order of the seeds: the folders under cells/",
}
SAME = 6  # decimals of a win rate in %: differences beyond them are noise of the judge's arithmetic
_COUNTS = ("rank", "n", "judge_agreement_n", "examples", "tokens", "steps", "forward_passes")


def build_leaderboard(results: Results) -> pd.DataFrame:
    """Return one row per (task, judge, trained_on, loss, settings) with the columns of `COLUMNS`.

    Tables come in the order of the experiment's tasks. Within each, complete and incomplete rows come first, by win
    rate, then rows that have not run, then failed ones. Raises `UserError` if one table mixes judges.
    """
    order = list(results.baselines)
    tables = sorted(results.evaluations.groupby(TABLE, sort=False), key=lambda table: order.index(table[0][0]))
    frame = pd.concat([_table(results, evaluations) for _, evaluations in tables], ignore_index=True)
    return frame.astype(dict.fromkeys(_COUNTS, "Int64"))


def _table(results: Results, evaluations: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of one leaderboard: policies trained on one task, on the prompts of one task."""
    _check_one_judge(evaluations.iloc[0]["evaluated_on"], evaluations)
    prompts = results.prompts[(results.prompts[TABLE] == evaluations.iloc[0][TABLE]).all(axis=1)]
    ids = sorted(prompts["id"].unique())
    start = evaluations[evaluations["loss"] == SFT]
    start_preferences = matrix(prompts[prompts["loss"] == SFT], "preference", start["seed"].tolist(), ids)
    controlled = length_controlled_rates(evaluations, prompts, ids)
    rows = [
        _row(results, group, prompts[prompts["cell"].isin(group["cell"])], ids, start_preferences, controlled)
        for _, group in evaluations.groupby(["loss", "settings"], sort=False)
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    complete = frame["status"] == OK
    compared = frame["win_rate"].round(SAME)
    frame["rank"] = compared.where(complete).rank(ascending=False, method="min")
    place = frame["status"].map({NOT_RUN: 1}).fillna(0).mask(frame["status"].str.startswith(FAILED), 2)
    ordered = frame.assign(place=place, compared=compared).sort_values(
        ["place", "compared"], ascending=[True, False], kind="stable"
    )
    return ordered[list(COLUMNS)]


def _row(
    results: Results, group: pd.DataFrame, prompts: pd.DataFrame, ids: list, start: np.ndarray, controlled: Controlled
) -> dict:
    """Return one row: `group` are its evaluations, `prompts` its responses, `start` the SFT policy's preferences."""
    first, seeds = group.iloc[0], group["seed"].tolist()
    values = {name: matrix(prompts, name, seeds, ids) for name in ("preference", "kl", "tokens", "characters")}
    preferences = values["preference"]
    judged = coverage(preferences) if ids else 0.0  # if nothing has been sampled, all of it is missing
    difference = paired_difference(preferences, start) if first["loss"] != SFT else UNKNOWN
    kl, kl_error = mean_with_error(values["kl"])
    characters, characters_error = mean_with_error(values["characters"])
    judged_by = group.sort_values("judge", ascending=False, kind="stable").iloc[0]  # a cell that was judged, if any was
    length_controlled = mean_of_seeds(controlled.rates[cell] for cell in group["cell"] if cell in controlled.rates)
    days = sorted(set(group["judge_date"]) - {""})
    cells = results.cells.set_index("cell").loc[group["cell"]]
    return {
        "task": first["evaluated_on"],
        "trained_on": first["trained_on"],
        "loss": first["loss"],
        "settings": first["settings"],
        **cells.iloc[0][["reduction", "data", "paper"]],
        "seeds": _listed(seeds),
        "status": _status(group, judged),
        **_percent("win_rate", win_rate(preferences)),
        "win_rate_se": 100 * mean_with_error(preferences)[1],
        **_percent("lc_win_rate", length_controlled),
        "lc_difficulty": "" if math.isnan(length_controlled.value) else controlled.difficulty,
        "n": int((~np.isnan(preferences)).sum()),
        "coverage": judged,
        **_percent("vs_sft", difference),
        "flip_rate": flip_rate(prompts["flipped"]),
        "first_rate": prompts["first"].mean(),
        "graded_rate": prompts["graded"].mean(),
        **judged_by[[name for name in COLUMNS if name.startswith("judge")]],
        "judge_date": " ".join(dict.fromkeys(days[:1] + days[-1:])),
        "baseline": results.baselines[first["evaluated_on"]],
        "mean_tokens": mean_with_error(values["tokens"])[0],
        "mean_characters": characters,
        "mean_characters_se": characters_error,
        "baseline_characters": prompts["baseline_characters"].mean(),
        "finished": prompts["finished"].astype(float).mean(),
        **cells[["dev_accuracy", "dev_margin"]].mean(),
        "kl": kl,
        "kl_se": kl_error,
        **cells[["examples", "tokens", "steps", "forward_passes"]].mean().round(),
        "train_seconds": cells["seconds"].mean(),
        "cells": _listed(group["cell"]),
    }


def _status(group: pd.DataFrame, judged: float) -> str:
    failed = group[group["state"] == FAILED]
    if len(failed):
        causes = failed.groupby(["stage", "reason"], sort=False)["seed"]
        told = [f"seed{'s' * (len(at) > 1)} {_listed(at)}, {stage}: {reason}" for (stage, reason), at in causes]
        return f"{FAILED}: {'; '.join(told)}"
    if (group["state"] == NOT_RUN).all():
        return NOT_RUN
    return OK if judged == 1 else INCOMPLETE


def _check_one_judge(task: str, evaluations: pd.DataFrame) -> None:
    """Raise `UserError` if a table mixes judges: each has its own scale, so the table would rank the judges."""
    judged = evaluations[evaluations["judge"] != ""]
    cells = {judge: _listed(rows["cell"]) for judge, rows in judged.groupby("judge")}
    if len(cells) > 1:
        mixed = "; ".join(f"{judge!r} judged cells {keys}" for judge, keys in cells.items())
        raise UserError(f"the results on {task} mix judges ({mixed}); run the experiment again, so that one judges all")


def _percent(name: str, interval: Interval) -> dict[str, float]:
    return {name: 100 * interval.value, f"{name}_low": 100 * interval.low, f"{name}_high": 100 * interval.high}


def _listed(values: Sequence) -> str:
    return " ".join(str(value) for value in values)
