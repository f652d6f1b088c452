"""Length-controlled win rates: what a win rate would be if both responses were equally long.

The model is AlpacaEval 2.0's (Dubois et al., 2404.04475; checked against alpaca_eval 0.6.6, `metrics/glm_winrate.py`):
the log-odds that the policy's response wins are w_l tanh(d / s) + w_d difficulty + w_b, where d is the difference of
the lengths in characters, reference minus policy, s its standard deviation over the policy's prompts, and
`difficulty` a number per prompt. The length-controlled rate is the mean over the prompts of sigmoid(w_d difficulty +
w_b): the length term is left out. Two things differ between AlpacaEval and the other tasks:

- AlpacaEval publishes difficulties, and with them the judgements of two variants of the reference model (concise and
  verbose), the *anchors*. Each policy's w_d is fitted; the anchors share w_l and w_d at a tenth of the weight, which
  keeps a policy from gaming the length term. The strength of the L1 penalty is cross-validated.
- Elsewhere `joint_difficulty` fits the difficulties to the judgements of all policies at once, with w_d = 1 for all,
  as AlpacaEval's authors fitted theirs. There are no anchors, and the penalty only keeps a policy that always wins
  finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from harness.evaluation.statistics.intervals import prompt_draws
from harness.evaluation.statistics.logistic import fit_logistic

RESAMPLES = 1000
BLOCK = 250  # resamples that are fitted at once
FOLDS = 5
STRENGTHS = np.logspace(-4, 4, 10)  # C, the inverse of the penalty: scikit-learn's default grid
ANCHOR_WEIGHT = 0.1  # a regularisation of 0.2, shared by the two anchored models
WEAK_PENALTY = 0.1  # moves the mean prediction by at most this many of the n judgements
ROUNDS = 500
SETTLED = 1e-4  # largest change of a difficulty in a round that ends the joint fit


@dataclass(frozen=True)
class Anchors:
    """Judgements of variants of the reference model: `terms` tanh(d / s), `difficulty` and `preferences`, each (a,)."""

    terms: np.ndarray
    difficulty: np.ndarray
    preferences: np.ndarray


def length_controlled(
    preferences: np.ndarray,
    differences: np.ndarray,
    difficulty: np.ndarray,
    anchors: Anchors | None = None,
    *,
    resamples: int = RESAMPLES,
    rng_seed: int = 0,
) -> tuple[float, np.ndarray]:
    """Return one policy's length-controlled win rate, in [0, 1], and those of `resamples` bootstrap resamples.

    `preferences` (n,) in [0, 1], NaN where there is none: such a row is predicted, but not fitted, as upstream does.
    `differences` (n,) are lengths in characters, the reference's minus the policy's; `difficulty` is (n,). With
    `anchors` this is AlpacaEval's model, without them w_d is 1 (see the module). The prompts are resampled as in
    `statistics.win_rate`, and s and all weights are fitted anew for each resample; the anchors, which are a part of
    the metric, stay, and so does the strength of the penalty. (Choosing it anew for each of 200 resamples of two
    published models moved no rate by more than 0.12 points, and no end of an interval by more than 0.02.)

    Where no two lengths differ, there is nothing to control and the result is the win rate. Where all differ by the
    same, or where nothing was judged, it is NaN: nothing tells the length's effect from the policy's.
    """
    judged = ~np.isnan(preferences)
    n = len(preferences)
    unknown = math.nan, np.full(resamples, math.nan)
    if not judged.any():
        return unknown
    targets = np.where(judged, preferences, 0.0)
    draws = prompt_draws(n, resamples, rng_seed)
    if not differences.any():
        with np.errstate(invalid="ignore"):
            return float(targets.sum() / judged.sum()), (draws @ targets) / (draws @ judged.astype(float))
    if np.ptp(differences) == 0:
        return unknown
    once = np.ones((1, n))
    problem = _Problem(targets, judged, difficulty, anchors)
    terms = length_terms(differences, once)
    penalty = WEAK_PENALTY if anchors is None else problem.chosen_penalty(terms)
    weights = problem.fit(terms, once, penalty)
    resampled = []
    for start in range(0, resamples, BLOCK):
        counts = draws[start : start + BLOCK].astype(float)
        fitted = problem.fit(length_terms(differences, counts), counts, penalty, start=weights)
        resampled.append(problem.mean_prediction(fitted, counts))
    return float(problem.mean_prediction(weights, once)[0]), np.concatenate(resampled)


def length_terms(differences: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return tanh(d / s) for each row of `counts` (m, n), which say how often each prompt is in a sample: (m, n)."""
    total = counts.sum(axis=1, keepdims=True)
    mean = (counts * differences).sum(axis=1, keepdims=True) / total
    variance = (counts * (differences - mean) ** 2).sum(axis=1, keepdims=True) / (total - 1)
    scale = np.sqrt(variance)
    return np.tanh(differences / np.where(scale > 0, scale, np.inf))  # a resample of equal differences has no term


def joint_difficulty(preferences: np.ndarray, differences: np.ndarray) -> np.ndarray:
    """Return the difficulty of each prompt (n,), fitted to all policies' judgements; 0 where there are too few.

    `preferences` (policies, n), NaN where there is none, and `differences` (policies, n) are as in `length_controlled`.
    The log-odds are w_l tanh(d / s) + w_b + difficulty, with weights of each policy's own. Difficulties are normal
    around 0, and their variance is estimated with them (empirical Bayes by EM in Laplace's approximation), so that a
    prompt's is drawn towards 0 as far as its few judgements are noise. With a single policy they cannot be told from
    noise: all 0.
    """
    judged = ~np.isnan(preferences)
    preferences, differences, judged = (a[judged.any(axis=1)] for a in (preferences, differences, judged))
    difficulty = np.zeros(judged.shape[1])
    if len(preferences) < 2:
        return difficulty
    targets = np.where(judged, preferences, 0.0)
    every = np.ones((1, judged.shape[1]))
    terms = np.concatenate([length_terms(row, every) for row in differences])
    features = np.stack([terms, np.ones_like(terms)])
    weights, variance = None, 1.0
    for _ in range(ROUNDS):
        weights = fit_logistic(features, targets, judged, WEAK_PENALTY, offset=difficulty[None], start=weights)
        before = difficulty
        fixed = np.einsum("kmn,mk->mn", features, weights)
        for _ in range(3):
            odds = expit(fixed + difficulty)
            precision = (judged * odds * (1 - odds)).sum(axis=0) + 1 / variance
            difficulty = difficulty + ((judged * (targets - odds)).sum(axis=0) - difficulty / variance) / precision
        variance = max(float((difficulty**2 + 1 / precision).mean()), 1e-6)
        if np.abs(difficulty - before).max() < SETTLED:
            break
    return difficulty


class _Problem:
    """One policy's rows, with the anchors' before them, as `fit_logistic` takes them."""

    def __init__(self, targets: np.ndarray, judged: np.ndarray, difficulty: np.ndarray, anchors: Anchors | None):
        self.judged = judged
        self.difficulty = difficulty
        self.anchors = anchors
        self.targets = (targets if anchors is None else np.concatenate([anchors.preferences, targets]))[None]
        self.offset = difficulty[None] if anchors is None else 0.0

    def fit(self, terms: np.ndarray, counts: np.ndarray, penalty: float, start: np.ndarray | None = None) -> np.ndarray:
        """Return the weights (m, k): of the length term, of difficulty (with anchors only), and w_b."""
        features, rows = self._features(terms), self._row_weights(counts)
        return fit_logistic(features, self.targets, rows, penalty, offset=self.offset, start=start)

    def chosen_penalty(self, terms: np.ndarray) -> float:
        """Return the penalty with the lowest cross-entropy on left-out rows, the strongest among equals.

        Folds as scikit-learn's GroupKFold deals out groups of equal size: in turn, from the last row on.
        """
        rows = self._row_weights(np.ones_like(terms))[0]
        used = np.flatnonzero(rows)
        features, targets, rows = self._features(terms)[:, :, used], self.targets[:, used], rows[used]
        fold = np.arange(len(used))[::-1] % FOLDS
        left_out = np.repeat(fold == np.arange(FOLDS)[:, None], len(STRENGTHS), axis=0)
        weights = fit_logistic(features, targets, rows * ~left_out, np.tile(1 / STRENGTHS, FOLDS))
        odds = weights @ features[:, 0]
        losses = left_out * rows * (np.logaddexp(0, odds) - targets * odds)
        means = (losses.sum(axis=1) / left_out.sum(axis=1)).reshape(FOLDS, -1).mean(axis=0)
        return float(1 / STRENGTHS[means.argmin()])

    def mean_prediction(self, weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return for each fit the mean over the sample of the win probability at equal lengths: (m,)."""
        of_difficulty = 1.0 if self.anchors is None else weights[:, [1]]
        predicted = expit(of_difficulty * self.difficulty + weights[:, [-1]])
        return (counts * predicted).sum(axis=1) / counts.sum(axis=1)

    def _features(self, terms: np.ndarray) -> np.ndarray:
        if self.anchors is None:
            return np.stack([terms, np.ones_like(terms)])
        a, m = len(self.anchors.terms), len(terms)
        features = np.zeros((3, m, a + terms.shape[1]))
        features[0, :, :a], features[1, :, :a] = self.anchors.terms, self.anchors.difficulty
        features[0, :, a:], features[1, :, a:], features[2, :, a:] = terms, self.difficulty, 1
        return features

    def _row_weights(self, counts: np.ndarray) -> np.ndarray:
        weights = counts * self.judged
        if self.anchors is None:
            return weights
        anchored = np.full((len(weights), len(self.anchors.terms)), ANCHOR_WEIGHT)
        return np.concatenate([anchored, weights], axis=1)
