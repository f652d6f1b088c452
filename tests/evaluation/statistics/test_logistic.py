"""Many small logistic regressions at once, against values computed by hand, a general optimiser, and scikit-learn."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from harness.evaluation.statistics.logistic import fit_logistic


@pytest.fixture
def problems():
    """Five regressions of three features on 60 rows with fractional targets, weights and offsets."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 5, 60))
    odds = features[0] - 2 * features[1] + rng.normal(size=(5, 60))
    return features, 1 / (1 + np.exp(-odds)), rng.uniform(0, 2, (5, 60)), rng.normal(size=(5, 60))


def objective(b, features, targets, weights, offset, penalty):
    odds = offset + b @ features
    return (weights * (np.logaddexp(0, odds) - targets * odds)).sum() + penalty * np.abs(b).sum()


def test_one_feature_of_ones_is_the_log_odds_of_the_weighted_mean():
    """Weights 3 and 1 on a win and a loss: the mean is 3/4, its log-odds ln 3. An offset is subtracted."""
    ones, targets, weights = np.ones((1, 1, 2)), np.array([[1.0, 0.0]]), np.array([[3.0, 1.0]])
    assert fit_logistic(ones, targets, weights, 0.0) == pytest.approx(math.log(3))
    assert fit_logistic(ones, targets, weights, 0.0, offset=np.full((1, 2), 0.5)) == pytest.approx(math.log(3) - 0.5)


def test_the_penalty_by_hand():
    """The slope at b is 4 (sigmoid(b) - 3/4): a penalty of 0.5 stops where sigmoid(b) = 5/8, one of 1 at b = 0."""
    ones, targets, weights = np.ones((1, 1, 2)), np.array([[1.0, 0.0]]), np.array([[3.0, 1.0]])
    assert fit_logistic(ones, targets, weights, 0.5) == pytest.approx(math.log(5 / 3))
    assert fit_logistic(ones, targets, weights, 1.0) == 0


@pytest.mark.parametrize("penalty", [0.0, 0.3, 5.0])
def test_a_general_optimiser_finds_nothing_lower(problems, penalty):
    coefficients = fit_logistic(*problems[:3], penalty, offset=problems[3])
    for r, b in enumerate(coefficients):
        features, targets, weights, offset = problems[0][:, r], *(a[r] for a in problems[1:])

        def split(parts, features=features, targets=targets, weights=weights, offset=offset):
            # b = positive part - negative part: the penalty becomes smooth
            b = parts[:3] - parts[3:]
            return objective(b, features, targets, weights, offset, 0) + penalty * parts.sum()

        other = minimize(split, np.full(6, 0.1), bounds=[(0, None)] * 6, options={"ftol": 1e-14, "gtol": 1e-10})
        assert objective(b, features, targets, weights, offset, penalty) <= other.fun + 1e-9
        np.testing.assert_allclose(b, other.x[:3] - other.x[3:], atol=1e-4)


def test_scikit_learn_finds_the_same(problems):
    from sklearn.linear_model import LogisticRegression

    features, targets, weights, _ = problems
    for r, b in enumerate(fit_logistic(features, targets, weights, 1 / 2.5)):
        rows = np.concatenate([features[:, r].T] * 2)
        labels = np.repeat([1, 0], features.shape[2])
        both = np.concatenate([weights[r] * targets[r], weights[r] * (1 - targets[r])])
        model = LogisticRegression(
            C=2.5, l1_ratio=1, solver="liblinear", fit_intercept=False, tol=1e-10, max_iter=10**4
        )
        np.testing.assert_allclose(model.fit(rows, labels, sample_weight=both).coef_[0], b, atol=1e-5)


def test_each_regression_stands_alone_and_may_share_its_data(problems):
    together = fit_logistic(*problems[:3], np.arange(5.0), offset=problems[3])
    for r in range(5):
        alone = fit_logistic(problems[0][:, [r]], problems[1][[r]], problems[2][[r]], float(r), offset=problems[3][[r]])
        np.testing.assert_allclose(together[[r]], alone, atol=1e-6)
    shared = fit_logistic(problems[0][:, :1], problems[1][:1], problems[2], 1.0)
    np.testing.assert_allclose(
        shared[3:4], fit_logistic(problems[0][:, :1], problems[1][:1], problems[2][3:4], 1.0), atol=1e-6
    )


def test_what_is_separable_stays_finite_under_a_penalty():
    """All 300 won: sigmoid(-b) = 0.1 / 300."""
    coefficient = fit_logistic(np.ones((1, 1, 300)), np.ones((1, 300)), np.ones((1, 300)), 0.1)
    assert coefficient == pytest.approx(math.log(300 / 0.1 - 1), rel=1e-6)


@pytest.mark.parametrize("difference", [1.0, 1e-3, 1e-6])
def test_few_rows_features_that_are_all_but_the_same_and_hardly_a_penalty(difference):
    """The six wins and losses are linearly separable. The minimum is far out, and Newton steps overshoot."""
    rng = np.random.default_rng(3)
    one = rng.normal(size=6)
    features, targets = np.stack([one, one + difference * rng.normal(size=6)]), (one > 0).astype(float)
    (coefficients,) = fit_logistic(features[:, None], targets[None], np.ones((1, 6)), 1e-4)

    def split(parts):
        return objective(parts[:2] - parts[2:], features, targets, 1.0, 0.0, 0) + 1e-4 * parts.sum()

    bounds, options = [(0, None)] * 4, {"ftol": 1e-15, "gtol": 1e-12, "maxiter": 10**4, "maxfun": 10**5}
    other = minimize(split, np.full(4, 0.1), bounds=bounds, options=options)
    assert objective(coefficients, features, targets, 1.0, 0.0, 1e-4) <= other.fun + 1e-9
