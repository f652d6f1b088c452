"""Win rates, their intervals, and the related measures."""

import cProfile
import math
import pstats

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.evaluation.statistics.intervals import (
    RESAMPLES,
    coverage,
    flip_rate,
    mean_with_error,
    paired_difference,
    prompt_draws,
    wilson_interval,
    win_rate,
)

NAN = math.nan


def matrix(*rows):
    return np.array(rows, dtype=float)


def noisy(rng, seeds, prompts, difficulty):
    """Wins and losses with a probability that depends on the prompt."""
    return (rng.random((seeds, prompts)) < difficulty).astype(float)


def test_the_interval_of_eight_prompts_by_hand():
    """Four wins among 8: a resample has k wins with probability C(8, k) / 256.

    P(k = 0) = 0.4 %, P(k <= 1) = 3.5 %: the 2.5 % quantile is 1 / 8, and by symmetry the other end is 7 / 8.
    """
    assert win_rate(matrix([1, 0] * 4)) == (0.5, 1 / 8, 7 / 8)


def test_the_interval_of_two_seeds_by_hand():
    """One seed always wins and one never does: a quarter of the resamples draws the first twice, a quarter the second
    twice."""
    assert win_rate(matrix([1] * 50, [0] * 50)) == (0.5, 0.0, 1.0)


def test_seeds_that_disagree_widen_the_interval():
    one_seed = noisy(np.random.default_rng(0), 1, 200, 0.5)
    alike = win_rate(np.repeat(one_seed, 3, axis=0))
    apart = win_rate(np.concatenate([one_seed, np.maximum(one_seed, 0.8), one_seed * 0.2]))
    assert alike.high - alike.low == pytest.approx(4 * math.sqrt(0.25 / 200), rel=0.1)
    assert apart.high - apart.low > 2 * (alike.high - alike.low)


def test_one_seed_may_come_as_a_row():
    row = noisy(np.random.default_rng(1), 1, 100, 0.4)
    assert win_rate(row[0]) == win_rate(row)


def test_ties_count_half():
    assert win_rate(matrix([1, 0.5, 0.5, 0])).value == 0.5


def test_missing_judgements_are_left_out_and_are_no_losses():
    preferences = noisy(np.random.default_rng(2), 2, 60, 0.7)
    with_gaps = np.concatenate([preferences, np.full((2, 40), NAN)], axis=1)
    assert win_rate(with_gaps).value == win_rate(preferences).value == preferences.mean()
    assert win_rate(with_gaps).low == pytest.approx(win_rate(preferences).low, abs=0.02)
    assert win_rate(matrix([1, 0, NAN], [NAN, 0, 1])).value == 0.5


def test_a_seed_without_any_judgement_is_not_drawn():
    preferences = np.random.default_rng(3).random((2, 50))
    assert win_rate(np.concatenate([preferences, np.full((1, 50), NAN)])) == win_rate(preferences)


@pytest.mark.parametrize("nothing", [np.full((2, 3), NAN), np.zeros((0, 5)), np.zeros((1, 0))])
def test_nothing_judged_is_unknown(nothing):
    assert all(map(math.isnan, win_rate(nothing)))


def test_where_all_judgements_are_the_same_the_interval_is_wilsons_for_that_many_prompts():
    assert win_rate(np.ones((3, 40))) == (1.0, *wilson_interval(40, 40))
    assert win_rate(np.zeros((3, 40))) == (0.0, *wilson_interval(0, 40))


def test_one_prompt_says_next_to_nothing_however_many_seeds_agree_on_it():
    assert win_rate(matrix([0.4], [0.5], [0.6])) == pytest.approx((0.5, *wilson_interval(0.5, 1)))


def test_a_report_comes_out_the_same_twice():
    preferences = np.random.default_rng(4).random((3, 90))
    assert win_rate(preferences) == win_rate(preferences.copy())
    assert win_rate(preferences) != win_rate(preferences, rng_seed=1)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """1,000 experiments of 150 prompts with varying win probabilities; the truth, their mean over prompts, is 0.6."""
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(1000):
        interval = win_rate(noisy(rng, 1, 150, rng.uniform(0.2, 1.0, 150)), resamples=1000)
        hits += interval.low <= 0.6 <= interval.high
    assert 0.92 <= hits / 1000 <= 0.975


def test_a_large_task_is_resampled_in_whole_arrays_and_its_prompts_are_drawn_once():
    """Speed is not timed. A loop over resamples would make more calls than there are resamples."""
    preferences = noisy(np.random.default_rng(6), 3, 256, 0.5)
    prompt_draws.cache_clear()
    with cProfile.Profile() as profile:
        win_rate(preferences)
        paired_difference(preferences, preferences[::-1])
    assert pstats.Stats(profile).total_calls < RESAMPLES
    drawn = prompt_draws.cache_info()
    assert (drawn.misses, drawn.hits) == (1, 1)


def test_a_pairing_cancels_the_difficulty_of_prompts():
    rng = np.random.default_rng(7)
    difficulty = rng.choice([0.02, 0.98], 200)
    a, b = noisy(rng, 3, 200, difficulty), noisy(rng, 3, 200, difficulty)
    paired = paired_difference(a, b)
    shuffled = paired_difference(a, b[:, rng.permutation(200)])
    assert paired.value == pytest.approx(a.mean() - b.mean())
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def test_a_constant_difference_has_no_spread():
    a = noisy(np.random.default_rng(8), 3, 100, 0.5) * 0.5
    difference = paired_difference(a + 0.25, a)
    assert difference == pytest.approx((0.25, 0.25, 0.25), abs=1e-6)
    assert paired_difference(a, a) == (0, 0, 0)


def test_the_interval_of_a_difference_covers_the_truth_as_often_as_it_says():
    """600 experiments of one seed; b's probability of winning is 0.1 less than a's on every prompt."""
    rng = np.random.default_rng(9)
    hits = 0
    for _ in range(600):
        chance = rng.uniform(0.1, 0.9, 150)
        interval = paired_difference(noisy(rng, 1, 150, chance), noisy(rng, 1, 150, chance - 0.1), resamples=1000)
        hits += interval.low <= 0.1 <= interval.high
    assert 0.92 <= hits / 600 <= 0.98


def test_only_prompts_and_seeds_that_both_were_judged_on_are_compared():
    a, b = matrix([1, 1, 0, NAN], [0, 0, 0, 0]), matrix([0, 1, NAN, 1], [NAN] * 4)
    assert paired_difference(a, b).value == 0.5
    assert all(map(math.isnan, paired_difference(matrix([1, NAN]), matrix([NAN, 1]))))


def test_one_policy_may_have_fewer_seeds():
    """One seed of a always wins, one never does, and b's only seed ties. Resampled differences are -0.5, 0 or 0.5."""
    assert paired_difference(matrix([1] * 30, [0] * 30), matrix([0.5] * 30)) == (0.0, -0.5, 0.5)


def test_a_pairing_of_different_prompts_is_refused():
    with pytest.raises(ValueError, match="the same prompts"):
        paired_difference(np.zeros((1, 3)), np.zeros((1, 4)))


def test_wilson_by_hand():
    """8 of 10, z = 1.959964: (0.8 + 0.19207) / 1.38415 -+ 1.959964 sqrt(0.016 + 0.0096036) / 1.38415."""
    assert wilson_interval(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-5)
    assert wilson_interval(0, 10) == pytest.approx((0, 0.27753), abs=1e-5)
    assert all(map(math.isnan, wilson_interval(0, 0)))


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, 2 * n), st.just(n))))
def test_wilson_holds_the_rate_lies_in_the_unit_interval_and_mirrors(counts):
    halves, n = counts
    low, high = wilson_interval(halves / 2, n)
    assert 0 <= low <= halves / 2 / n <= high <= 1
    assert wilson_interval(n - halves / 2, n) == pytest.approx((1 - high, 1 - low))


def test_the_error_of_a_mean_is_that_of_the_prompts():
    """Prompt means 1, 2, 3 and 6 have mean 3, standard deviation sqrt(14 / 3), and half of that as standard error."""
    values = matrix([0, 2, 3, 5], [2, 2, 3, 7])
    assert mean_with_error(values) == pytest.approx((3, math.sqrt(14 / 3) / 2))
    assert mean_with_error(values.mean(axis=0)) == mean_with_error(values)
    assert mean_with_error(np.repeat(values, 5, axis=0)) == pytest.approx(mean_with_error(values))


def test_missing_values_have_no_part_in_a_mean():
    assert mean_with_error(matrix([1, 3, NAN], [NAN, 3, NAN])) == pytest.approx((7 / 3, 1.0))
    mean, error = mean_with_error(matrix([2, NAN]))
    assert mean == 2 and math.isnan(error)
    assert all(map(math.isnan, mean_with_error(matrix([NAN, NAN]))))


def test_coverage_is_the_share_that_carries_a_preference():
    assert coverage(matrix([1, NAN], [0.5, 0])) == 0.75
    assert math.isnan(coverage(np.zeros((0, 0))))


def test_the_flip_rate_counts_what_had_both_orders():
    assert flip_rate([True, False, False, None, np.True_, NAN]) == 0.5
    assert math.isnan(flip_rate([None, None]))
