"""Many small weighted logistic regressions at once: with fractional targets, an L1 penalty and an offset."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

STEPS = 100
SWEEPS = 200  # of coordinate descent within a step; few are needed, as there are few coefficients
TOLERANCE = 1e-7
LONGEST = 4.0  # of a step, per coefficient: from far away Newton's step can overshoot
NOTHING = 1e-14  # of the objective, gained in a sweep: where features are all but the same, coefficients drift for ever
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
    """Return the coefficients (m, k) of m regressions that minimise sum_i w_i CE(y_i, sigmoid(o_i + x_i . b)) + penalty |b|_1.

    `features` are (k, m, n), `targets` in [0, 1], `weights` and `offset` (m, n), `penalty` (m,); each axis but k may
    be 1 where all regressions share the values. There is no intercept: a feature of ones is one. `start` (m, k) are
    coefficients to start from. CE is the cross-entropy, so a target of 0.7 is a row of 1 weighing 0.7 and one of 0
    weighing 0.3. With C = 1 / penalty this is what scikit-learn minimises with `penalty="l1"`.

    Method: Newton's with the penalty kept as it is (each step minimises the quadratic model plus the penalty by
    coordinate descent, as liblinear's newGLMNET does), for all regressions together.
    """
    k = len(features)
    m = np.broadcast_shapes(features.shape[1:], targets.shape, weights.shape, np.shape(offset))[0]
    penalty = np.broadcast_to(np.asarray(penalty, dtype=float), (m,))
    coefficients = np.zeros((m, k)) if start is None else np.broadcast_to(start, (m, k)).astype(float)
    for _ in range(STEPS):
        probabilities = expit(offset + np.einsum("kmn,mk->mn", features, coefficients))
        residuals = weights * (probabilities - targets)
        curvature = weights * probabilities * (1 - probabilities)
        gradient = np.stack([(residuals * x).sum(axis=1) for x in features], axis=1)
        hessian = np.empty((m, k, k))
        for i in range(k):
            scaled = curvature * features[i]
            for j in range(i + 1):
                hessian[:, i, j] = hessian[:, j, i] = (scaled * features[j]).sum(axis=1)
        step = _penalised_step(coefficients, gradient, hessian + RIDGE * np.eye(k), penalty)
        coefficients += np.clip(step, -LONGEST, LONGEST)
        gained = np.einsum("mk,mkj,mj->m", step, hessian, step)
        if np.abs(step).max() < TOLERANCE or gained.max() < NOTHING:
            break
    return coefficients


def _penalised_step(b: np.ndarray, gradient: np.ndarray, hessian: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Return the step d (m, k) that minimises gradient . d + d H d / 2 + penalty |b + d|_1."""
    new = b.copy()
    for _ in range(SWEEPS):
        largest = gained = 0.0
        for j in range(b.shape[1]):
            slope = gradient[:, j] + np.einsum("mk,mk->m", hessian[:, j], new - b) - hessian[:, j, j] * new[:, j]
            value = -np.sign(slope) * np.maximum(np.abs(slope) - penalty, 0) / hessian[:, j, j]
            change = value - new[:, j]
            largest = max(largest, float(np.abs(change).max()))
            gained = max(gained, float((hessian[:, j, j] * change**2).max()))
            new[:, j] = value
        if largest < TOLERANCE / 10 or gained < NOTHING:
            break
    return new - b
