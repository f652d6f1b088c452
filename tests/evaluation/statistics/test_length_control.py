"""Win rates at equal lengths: properties that any such rate must have, and true values that it must recover."""

import math

import numpy as np
import pytest

from harness.evaluation.statistics.intervals import mean_of_seeds, win_rate
from harness.evaluation.statistics.length_control import joint_difficulty, length_controlled, length_terms


def simulated(rng, policies, prompts, *, length_effect, spread=1.0, scale=100):
    """Return preferences and length differences of policies of equal quality, and the true difficulties."""
    difficulty = spread * rng.normal(size=prompts)
    differences = np.round(scale * rng.normal(size=(policies, prompts)))
    terms = np.concatenate([length_terms(row, np.ones((1, prompts))) for row in differences])
    odds = length_effect * terms + difficulty
    return (rng.random(odds.shape) < 1 / (1 + np.exp(-odds))).astype(float), differences, difficulty


def test_the_length_term_by_hand():
    """Differences 3, -3 and 0 have the standard deviation 3; counted twice, twice and once, sqrt(36 / 4) too."""
    once = [math.tanh(1), -math.tanh(1), 0]
    np.testing.assert_allclose(length_terms(np.array([3.0, -3, 0]), np.array([[1.0, 1, 1], [2, 2, 1]])), [once, once])


def test_without_a_length_effect_the_rate_is_the_win_rate():
    """The fit's mean prediction is the mean preference, and the effect assigned to length averages to 0."""
    rng = np.random.default_rng(0)
    preferences, differences, _ = simulated(rng, 1, 4000, length_effect=0)
    rate, _ = length_controlled(preferences[0], differences[0], np.zeros(4000))
    assert rate == pytest.approx(preferences.mean(), abs=0.002)


def test_equal_lengths_leave_the_win_rate_and_its_interval():
    preferences = np.array([1.0, 0, 0.5, 1, 0, 0, 1, 1])
    rate = mean_of_seeds([length_controlled(preferences, np.zeros(8), np.zeros(8), resamples=10_000)])
    assert rate == pytest.approx(win_rate(preferences))


def test_a_policy_that_wins_by_length_alone_is_no_better():
    """A policy is longer by 100 characters on average and preferred for it: it wins 75 %, but 50 % at equal lengths."""
    rng = np.random.default_rng(1)
    differences = np.round(-100 + 100 * rng.normal(size=3000))
    odds = -2 * length_terms(differences, np.ones((1, 3000)))[0]
    preferences = (rng.random(3000) < 1 / (1 + np.exp(-odds))).astype(float)
    rate, resampled = length_controlled(preferences, differences, np.zeros(3000))
    assert preferences.mean() > 0.7
    assert np.quantile(resampled, 0.025) < 0.5 < np.quantile(resampled, 0.975) and rate == pytest.approx(0.5, abs=0.05)


def test_swapping_policy_and_reference_mirrors_the_rate():
    rng = np.random.default_rng(2)
    preferences, differences, difficulty = simulated(rng, 1, 300, length_effect=1)
    rate, resampled = length_controlled(preferences[0], differences[0], difficulty)
    mirrored, resampled_too = length_controlled(1 - preferences[0], -differences[0], -difficulty)
    assert mirrored == pytest.approx(1 - rate, abs=1e-6)
    np.testing.assert_allclose(resampled_too, 1 - resampled, atol=1e-6)


def test_the_order_of_the_rows_does_not_matter():
    rng = np.random.default_rng(3)
    preferences, differences, difficulty = simulated(rng, 1, 200, length_effect=1)
    order = rng.permutation(200)
    rate, _ = length_controlled(preferences[0], differences[0], difficulty, resamples=1)
    other, _ = length_controlled(preferences[0][order], differences[0][order], difficulty[order], resamples=1)
    assert other == pytest.approx(rate, abs=1e-7)


def test_a_row_without_a_preference_is_predicted_but_not_fitted():
    """A quarter of the rows has no judgement. With difficulties of -50 and 50 they are predicted to lose and to win."""
    preferences, differences, difficulty = simulated(np.random.default_rng(4), 1, 200, length_effect=1)
    unjudged = np.arange(200) >= 150
    some = np.where(unjudged, np.nan, preferences[0])
    rates = [
        length_controlled(some, differences[0], np.where(unjudged, end, difficulty), resamples=1)[0]
        for end in (-50, 50)
    ]
    assert rates[1] - rates[0] == pytest.approx(50 / 200, abs=1e-6)


@pytest.mark.parametrize(
    "preferences, differences",
    [([math.nan] * 4, [1, 2, 3, 4]), ([1.0, 0, 1, 1], [7, 7, 7, 7])],
    ids=["nothing was judged", "all differ by the same"],
)
def test_where_nothing_can_be_told_there_is_no_rate(preferences, differences):
    rate, resampled = length_controlled(np.array(preferences), np.array(differences, dtype=float), np.zeros(4))
    assert math.isnan(rate) and np.isnan(resampled).all()
    assert all(math.isnan(value) for value in mean_of_seeds([(rate, resampled)]))


def test_a_policy_that_always_wins_has_a_rate_of_one():
    differences = np.random.default_rng(5).normal(size=100)
    rate, resampled = length_controlled(np.ones(100), differences, np.zeros(100))
    assert rate == pytest.approx(1, abs=0.002) and (resampled > 0.99).all()


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """100 simulated policies whose rate at equal lengths is 50 %: the 95 % interval misses it about 5 times."""
    rng = np.random.default_rng(6)
    hits = 0
    for _ in range(100):
        preferences, differences, _ = simulated(rng, 1, 200, length_effect=1.5, spread=0)
        interval = mean_of_seeds([length_controlled(preferences[0], differences[0], np.zeros(200), resamples=200)])
        hits += interval.low <= 0.5 <= interval.high
    assert 88 <= hits <= 99


def test_seeds_are_drawn_too():
    """Two seeds with constant rates, 0.2 and 0.8. A quarter of the resamples draws only the first, a quarter only the
    second."""
    rates = [(0.2, np.full(1000, 0.2)), (0.8, np.full(1000, 0.8))]
    assert mean_of_seeds(rates) == pytest.approx((0.5, 0.2, 0.8))
    assert mean_of_seeds([*rates[:1], (math.nan, np.full(1000, math.nan))]) == pytest.approx((0.2, 0.2, 0.2))


def test_the_joint_fit_finds_the_difficulties():
    """With twelve policies per prompt, difficulties are shrunk towards 0 but keep their true order and scale."""
    rng = np.random.default_rng(7)
    preferences, differences, truth = simulated(rng, 12, 400, length_effect=1)
    fitted = joint_difficulty(preferences, differences)
    assert np.corrcoef(fitted, truth)[0, 1] > 0.8
    assert 0.6 < np.polyfit(fitted, truth, 1)[0] < 1.4, "not over- or under-stated: their regression has slope 1"


def test_prompts_that_are_all_alike_get_no_difficulty():
    rng = np.random.default_rng(8)
    preferences, differences, _ = simulated(rng, 6, 400, length_effect=1, spread=0)
    assert np.abs(joint_difficulty(preferences, differences)).max() < 0.5


def test_a_single_policy_tells_nothing_of_difficulty():
    preferences, differences, _ = simulated(np.random.default_rng(9), 2, 50, length_effect=1)
    preferences[1] = np.nan
    assert not joint_difficulty(preferences, differences).any()


def test_the_joint_fit_leaves_the_win_rate_of_policies_that_length_does_not_help():
    """With w_d = 1 for all policies and difficulties fitted to these judgements, the win rate is unchanged."""
    rng = np.random.default_rng(10)
    preferences, differences, _ = simulated(rng, 3, 3000, length_effect=0)
    difficulty = joint_difficulty(preferences, differences)
    for row, lengths in zip(preferences, differences, strict=True):
        rate, _ = length_controlled(row, lengths, difficulty, resamples=1)
        assert rate == pytest.approx(row.mean(), abs=0.005)
