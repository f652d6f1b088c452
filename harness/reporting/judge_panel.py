"""How far the judges of a panel agree in ranking the same policies."""

from __future__ import annotations

import math
from itertools import combinations
from typing import NamedTuple

import pandas as pd


class RankingAgreement(NamedTuple):
    """Kendall's tau-b between two judges' win rates of the same `n` policies; NaN where it is not defined."""

    task: str
    trained_on: str
    judge: str
    other: str
    tau: float
    n: int


def ranking_agreements(leaderboard: pd.DataFrame) -> list[RankingAgreement]:
    """Return the agreement of every two judges of a panel, for each task and training task of a leaderboard.

    The policies are the rows for which both judges have a win rate. With fewer than two, or if a judge rates all of
    them the same, there is no ranking. Tau-b counts pairs of policies that the two judges order alike minus those that
    they order differently, and corrects for ties (Kendall 1945; scipy's `kendalltau`).
    """
    from scipy.stats import kendalltau

    agreements = []
    for (task, trained_on), rows in leaderboard.groupby(["task", "trained_on"], sort=False):
        rates = rows.pivot(index=["loss", "settings"], columns="judge_name", values="win_rate")
        for judge, other in combinations(rows["judge_name"].unique(), 2):
            both = rates[[judge, other]].dropna()
            tau = float(kendalltau(both[judge], both[other]).statistic) if len(both) > 1 else math.nan
            agreements.append(RankingAgreement(task, trained_on, judge, other, tau, len(both)))
    return agreements
