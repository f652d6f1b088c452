"""The frontier of reward against KL: the reward a method reaches at a KL to the reference, with intervals.

A method is a set of policies (with different strengths or amounts of training), each with a mean reward and a mean KL.
Its frontier is their upper concave envelope, starting from the SFT policy at KL 0. Drawing each response at random
from one of two policies gives the mixture of their rewards, at no more than the mixture of their KLs (KL is convex),
so every point of the envelope is achievable. Beyond the best policy it is flat, because a budget need not be used up.
For a budget above the KL of all policies of a method, the result is unknown (NaN).

An envelope selects the best of many noisy means, so it is biased upwards; the bias grows with the number of policies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.evaluation.statistics.intervals import LEVEL, UNKNOWN, Interval

BUDGETS = (0.5, 1.0, 2.0, 4.0)  # nats
RESAMPLES = 2000


@dataclass(frozen=True)
class Policies:
    """The policies of one method: `reward` and `kl`, each `(policies, seeds, prompts)`."""

    reward: np.ndarray
    kl: np.ndarray

    @property
    def reach(self) -> float:
        """The largest mean KL."""
        return float(self.kl.mean(axis=(1, 2)).max())


@dataclass(frozen=True)
class Frontier:
    """The frontier of one method.

    - `kl` (in nats) and `reward`: the corners of its envelope.
    - `at`: the reward at each of `BUDGETS`, with intervals.
    - `area`: the mean gain over the SFT policy's reward between KL 0 and the common budget, with its interval.
    - `at_difference`, `area_difference`: the same as differences from the first method.
    """

    kl: np.ndarray
    reward: np.ndarray
    at: dict[float, Interval]
    area: Interval
    at_difference: dict[float, Interval]
    area_difference: Interval


def envelope(kl: Sequence[float], reward: Sequence[float], start: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners (KLs, rewards) of the upper concave envelope of (0, `start`) and the points, to its top."""
    corners: list[tuple[float, float]] = []
    for x, y in sorted([(0.0, start), *((max(0.0, x), y) for x, y in zip(kl, reward, strict=True))]):
        while corners and corners[-1][0] == x and corners[-1][1] <= y:
            corners.pop()
        if corners and y <= corners[-1][1]:
            continue  # no better than a point with a lower KL
        while len(corners) > 1 and _below(corners[-2], corners[-1], (x, y)):
            corners.pop()
        corners.append((x, y))
    return np.array([x for x, _ in corners]), np.array([y for _, y in corners])


def _below(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Return whether b lies on or below the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])


def reward_at(corners: tuple[np.ndarray, np.ndarray], budget: float) -> float:
    """Return an envelope's reward at a KL budget; the envelope is flat after its last corner."""
    return float(np.interp(budget, *corners))


def mean_gain(corners: tuple[np.ndarray, np.ndarray], budget: float) -> float:
    """Return the mean of an envelope's reward minus its reward at KL 0, over KL from 0 to `budget`."""
    x, y = corners
    inside = x < budget
    x = np.append(x[inside], budget)
    y = np.append(y[inside], np.interp(budget, *corners))
    return float(np.trapezoid(y - y[0], x) / budget)


def frontiers(
    methods: Mapping[str, Policies], start: np.ndarray, *, resamples: int = RESAMPLES, rng_seed: int = 0
) -> tuple[dict[str, Frontier], float]:
    """Return the frontier of each method, and the common budget of their areas: the largest KL that all of them reach.

    `start` is the SFT policy's reward, `(seeds, prompts)`. Intervals are bootstrapped over seeds and prompts. The draws
    are the same for all methods, so the difficulty of prompts cancels in differences, and the envelope is recomputed
    for each resample. With one seed, intervals do not cover the variation between seeds.
    """
    seeds, prompts = start.shape
    rng = np.random.default_rng(rng_seed)
    draws = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples) / prompts
    chosen = rng.integers(seeds, size=(resamples, seeds))
    common = min(policies.reach for policies in methods.values())

    def means(values: np.ndarray) -> np.ndarray:
        """Return `(1 + resamples, policies)`: the mean of the data, then of each resample."""
        per_seed = np.einsum("psn,rn->rps", values, draws)
        drawn = np.take_along_axis(per_seed, chosen[:, None, :], axis=2).mean(axis=2)
        return np.concatenate([values.mean(axis=(1, 2))[None], drawn])

    starts = means(start[None])[:, 0]
    corners: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    at: dict[str, dict[float, np.ndarray]] = {}
    areas: dict[str, np.ndarray] = {}
    for name, policies in methods.items():
        hulls = [envelope(*each) for each in zip(means(policies.kl), means(policies.reward), starts, strict=True)]
        corners[name] = hulls[0]
        at[name] = {b: np.array([reward_at(h, b) if b <= policies.reach else np.nan for h in hulls]) for b in BUDGETS}
        areas[name] = np.array([mean_gain(hull, common) for hull in hulls])
    first = next(iter(methods))
    made = {}
    for name, (kl, reward) in corners.items():
        made[name] = Frontier(
            kl,
            reward,
            at={budget: _interval(values) for budget, values in at[name].items()},
            area=_interval(areas[name]),
            at_difference={budget: _interval(values - at[first][budget]) for budget, values in at[name].items()},
            area_difference=_interval(areas[name] - areas[first]),
        )
    return made, common


def _interval(values: np.ndarray) -> Interval:
    """Return the first value, with the central `LEVEL` interval of the others."""
    if np.isnan(values).any():
        return UNKNOWN
    low, high = np.quantile(values[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values[0]), float(low), float(high))
