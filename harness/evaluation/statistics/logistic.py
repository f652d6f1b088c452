"""Many small weighted logistic regressions at once: with fractional targets, an L1 penalty and an offset."""

from __future__ import annotations

from itertools import product

import numpy as np
from scipy.special import expit

STEPS = 100
HALVINGS = 40  # of a step that overshoots, as Newton's can from far away
TOLERANCE = 1e-7
NOTHING = 1e-14  # of the objective: less than it is exact to
RIDGE = 1e-9  # keeps the curvature of a feature that is 0 throughout invertible


def fit_logistic(
    features: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    penalty: np.ndarray | float,
    *,
    offset: np.ndarray | float = 0.0,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """Return the coefficients b (m, k) of m regressions.

    Each minimises sum_i w_i CE(y_i, sigmoid(o_i + x_i . b)) + penalty |b|_1. `features` are (k, m, n), `targets` in [0,
    1], `weights` and `offset` (m, n), `penalty` (m,); each axis but k may be 1 where all regressions share the values.
    There is no intercept: a feature of ones is one. `start` (m, k) are coefficients to start from. CE is the
    cross-entropy, so a target of 0.7 is a row of 1 weighing 0.7 and one of 0 weighing 0.3. With C = 1 / penalty this is
    what scikit-learn minimises with `penalty="l1"`.

    Method: Newton's with the penalty kept as it is (each step minimises the quadratic model plus the penalty, as
    liblinear's newGLMNET does), for all regressions together. Its time grows as 3^k: k is to be small.
    """
    k = len(features)
    m = np.broadcast_shapes(features.shape[1:], targets.shape, weights.shape, np.shape(offset))[0]
    penalty = np.broadcast_to(np.asarray(penalty, dtype=float), (m,))
    coefficients = np.zeros((m, k)) if start is None else np.broadcast_to(start, (m, k)).astype(float)
    odds = offset + np.einsum("kmn,mk->mn", features, coefficients)
    value = _objective(coefficients, odds, targets, weights, penalty)
    for _ in range(STEPS):
        probabilities = expit(odds)
        residuals = weights * (probabilities - targets)
        curvature = weights * probabilities * (1 - probabilities)
        gradient = np.stack([(residuals * x).sum(axis=1) for x in features], axis=1)
        hessian = np.empty((m, k, k))
        for i in range(k):
            scaled = curvature * features[i]
            for j in range(i + 1):
                hessian[:, i, j] = hessian[:, j, i] = (scaled * features[j]).sum(axis=1)
        step = _penalised_step(coefficients, gradient, hessian + RIDGE * np.eye(k), penalty)
        exact = NOTHING * (1 + value)
        for _ in range(HALVINGS):
            reached = coefficients + step
            odds = offset + np.einsum("kmn,mk->mn", features, reached)
            gained = value - _objective(reached, odds, targets, weights, penalty)
            too_far = gained < -exact
            if not too_far.any():
                break
            step[too_far] /= 2
        coefficients, value = reached, value - gained
        if np.abs(step).max() < TOLERANCE or (gained < exact).all():
            break
    return coefficients


def _objective(
    b: np.ndarray, odds: np.ndarray, targets: np.ndarray, weights: np.ndarray, penalty: np.ndarray
) -> np.ndarray:
    """Return what is minimised, of each regression: (m,)."""
    softplus = np.log1p(np.exp(-np.abs(odds))) + np.maximum(odds, 0)
    return (weights * (softplus - targets * odds)).sum(axis=1) + penalty * np.abs(b).sum(axis=1)


def _penalised_step(b: np.ndarray, gradient: np.ndarray, hessian: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Return the step d (m, k) that minimises gradient . d + d H d / 2 + penalty |b + d|_1.

    For given signs of b + d the minimum solves a linear system. Near the end the signs are those of b; where they are
    not, all 3^k are tried. (Coordinate descent takes for ever where two features are all but the same.)
    """
    pull = np.einsum("mkj,mj->mk", hessian, b) - gradient
    new = _with_signs(np.sign(b), pull, hessian, penalty)
    slope = np.einsum("mkj,mj->mk", hessian, new) - pull
    bound = penalty[:, None] * (1 + TOLERANCE)
    wrong = ~np.where(b != 0, np.sign(new) == np.sign(b), np.abs(slope) <= bound).all(axis=1)
    if wrong.any():
        pull, hessian, penalty = pull[wrong], hessian[wrong], penalty[wrong]
        lowest = np.full(len(pull), np.inf)
        best = np.zeros_like(pull)
        for signs in product((-1.0, 0.0, 1.0), repeat=b.shape[1]):
            x = _with_signs(np.broadcast_to(signs, pull.shape), pull, hessian, penalty)
            value = np.einsum("mk,mk->m", x, np.einsum("mkj,mj->mk", hessian, x) / 2 - pull)
            value = np.where((np.sign(x) == signs).all(axis=1), value + penalty * np.abs(x).sum(axis=1), np.inf)
            best = np.where((value < lowest)[:, None], x, best)
            lowest = np.minimum(value, lowest)
        new[wrong] = best
    return new - b


def _with_signs(signs: np.ndarray, pull: np.ndarray, hessian: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Return the x (m, k) that minimises x H x / 2 - pull . x + penalty (signs . x) and is 0 where its sign is."""
    used = signs != 0
    both = used[:, :, None] & used[:, None, :]
    system = np.where(both, hessian, np.eye(signs.shape[1]))
    return np.linalg.solve(system, np.where(used, pull - penalty[:, None] * signs, 0)[:, :, None])[:, :, 0]
