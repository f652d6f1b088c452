"""Envelopes, their heights and areas, on hand-made curves; intervals on known rewards."""

import numpy as np
import pytest

from harness.evaluation.statistics.frontier import Policies, envelope, frontiers, mean_gain, reward_at


def test_an_envelope_begins_at_the_sft_policy_and_keeps_the_corners_of_the_hull():
    kl, reward = [1.0, 2.0, 4.0, 3.0], [0.6, 0.62, 0.8, 0.65]  # the second and last lie below the line to the third
    x, y = envelope(kl, reward, 0.5)
    assert list(zip(x, y, strict=True)) == [(0.0, 0.5), (1.0, 0.6), (4.0, 0.8)]


def test_what_costs_more_and_earns_less_is_no_part_of_it():
    x, y = envelope([1.0, 2.0, 0.5], [0.7, 0.6, 0.4], 0.5)
    assert list(zip(x, y, strict=True)) == [(0.0, 0.5), (1.0, 0.7)]
    assert [list(part) for part in envelope([1.0], [0.3], 0.5)] == [[0.0], [0.5]]


def test_an_estimate_of_kl_below_0_counts_as_0():
    x, y = envelope([-0.01, 1.0], [0.52, 0.6], 0.5)
    assert list(zip(x, y, strict=True)) == [(0.0, 0.52), (1.0, 0.6)]


def test_its_height_is_interpolated_and_flat_behind_the_last_corner():
    corners = envelope([1.0, 4.0], [0.6, 0.8], 0.5)
    assert reward_at(corners, 0.5) == pytest.approx(0.55)
    assert reward_at(corners, 2.5) == pytest.approx(0.7)
    assert reward_at(corners, 9.0) == pytest.approx(0.8)


def test_the_area_is_the_mean_gain_over_the_budget():
    corners = envelope([1.0, 4.0], [0.6, 0.8], 0.5)
    assert mean_gain(corners, 1.0) == pytest.approx(0.05)  # a triangle of height 0.1
    assert mean_gain(corners, 4.0) == pytest.approx((0.05 + 3 * 0.2) / 4)
    assert mean_gain(corners, 8.0) == pytest.approx((0.05 + 0.6 + 4 * 0.3) / 8)
    assert mean_gain(corners, 0.5) == pytest.approx(0.025)


def constant(*points: tuple[float, float], seeds: int = 2, prompts: int = 30) -> Policies:
    """Return policies of these (KL, reward), the same on every prompt and seed."""
    shape = (seeds, prompts)
    return Policies(
        np.stack([np.full(shape, reward) for _, reward in points]), np.stack([np.full(shape, kl) for kl, _ in points])
    )


def test_where_nothing_varies_every_interval_has_no_width():
    methods = {"dpo": constant((1.0, 0.6), (3.0, 0.7)), "ipo": constant((0.5, 0.6), (2.0, 0.6))}
    frontier_of, common = frontiers(methods, np.full((2, 30), 0.5))
    assert common == 2.0
    np.testing.assert_allclose(frontier_of["dpo"].at[1.0], 0.6)
    np.testing.assert_allclose(frontier_of["dpo"].at[2.0], 0.65)
    np.testing.assert_allclose(frontier_of["ipo"].at_difference[0.5], 0.05)
    np.testing.assert_allclose(frontier_of["dpo"].area_difference, 0, atol=1e-12)
    np.testing.assert_allclose(frontier_of["ipo"].area, (0.5 * 0.05 + 1.5 * 0.1) / 2)


def test_beyond_what_any_policy_of_a_method_reached_nothing_is_said():
    frontier_of, _ = frontiers({"dpo": constant((1.5, 0.6)), "ipo": constant((5.0, 0.6))}, np.full((2, 30), 0.5))
    assert np.isnan(frontier_of["dpo"].at[2.0]).all() and np.isnan(frontier_of["ipo"].at_difference[2.0]).all()
    assert frontier_of["ipo"].at[4.0].value == pytest.approx(0.58)


def noisy(rng, mean: float, difficulty: np.ndarray, seeds: int = 3) -> np.ndarray:
    return mean + difficulty + 0.05 * rng.normal(size=(seeds, len(difficulty)))


def test_the_difficulty_of_prompts_cancels_in_differences_and_the_truth_is_in_the_interval():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(size=200)
    kl = np.full((1, 3, 200), 1.0)
    methods = {
        "dpo": Policies(noisy(rng, 0.6, difficulty)[None], kl),
        "ipo": Policies(noisy(rng, 0.7, difficulty)[None], kl),
    }
    frontier_of, _ = frontiers(methods, noisy(rng, 0.5, difficulty))
    own, difference = frontier_of["ipo"].at[1.0], frontier_of["ipo"].at_difference[1.0]
    assert difference.low < 0.1 < difference.high
    assert own.high - own.low > 10 * (difference.high - difference.low)


def test_a_seed_that_matters_widens_the_interval():
    rng = np.random.default_rng(1)
    kl = np.full((1, 3, 100), 1.0)
    even = noisy(rng, 0.6, np.zeros(100))
    uneven = even + np.array([[-0.2], [0.0], [0.2]])
    start = np.full((3, 100), 0.5)
    widths = []
    for reward in (even, uneven):
        interval = frontiers({"dpo": Policies(reward[None], kl)}, start)[0]["dpo"].at[1.0]
        widths.append(interval.high - interval.low)
    assert widths[1] > 5 * widths[0]


def test_the_same_rewards_give_the_same_intervals():
    rng = np.random.default_rng(2)
    policies = Policies(rng.normal(size=(4, 3, 50)), rng.random((4, 3, 50)))
    first, again = (frontiers({"dpo": policies}, np.zeros((3, 50)))[0]["dpo"] for _ in range(2))
    assert first.at == again.at or np.isnan(first.at[4.0].value)
    assert first.area == again.area
