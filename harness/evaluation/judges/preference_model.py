"""The offline judge: a logistic regression that learns from labelled pairs which of two responses people prefer.

It sees a pair as the difference of two feature vectors (the sentence embedding of the last user turn with the
response, and the log of the response's length), without an intercept. The difference in length is bounded, so that
responses much longer or shorter than any that it learned from do not decide alone. The model is antisymmetric: swapping the responses
turns its verdict round, and there is no order to depend on. It is a weak judge; its accuracy on pairs that it has
not seen stands beside every result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from harness.errors import UserError
from harness.evaluation.base import Agreement, Comparison, JudgeContext, Judgement, register_judge
from harness.evaluation.statistics import wilson_interval
from harness.hashing import hash_value
from harness.store import key_of, read_json, write_json
from harness.tasks.base import Preference, Prompt

KIND = "preference-models"
FILE = "model.json"
FORMAT = 2  # raised when the features or the fit change
FEWEST_PAIRS = 20
ASKED = 300  # characters of the last user turn that are embedded


@dataclass
class PreferenceModelOptions:
    """The settings under `judge:` in an experiment file."""

    C: list[float] = field(default_factory=lambda: [0.01, 0.1, 1.0, 10.0, 100.0])  # as scikit-learn's: large is weak
    folds: int = 5  # of the cross-validation that chooses C; pairs of one prompt stay together


def check(options: PreferenceModelOptions) -> None:
    """Raise `UserError` for settings that cannot work."""
    if not options.C or not all(0 < c < math.inf for c in options.C):
        raise UserError(f"judge.C must hold numbers above 0, got {options.C}")
    if options.folds < 2:
        raise UserError(f"judge.folds must be at least 2, got {options.folds}")


@register_judge("preference_model", options=PreferenceModelOptions, check=check)
def make(options: PreferenceModelOptions, context: JudgeContext) -> PreferenceModelJudge:
    """Return the judge of one task, fitted on `context.fit` unless the store has that fit, measured on `held_out`.

    Raises `UserError` where there are too few pairs to fit on.
    """
    pairs = [pair for pair in context.fit if pair.paired]
    groups = [hash_value([[message.role, message.content] for message in pair.prompt]) for pair in pairs]
    if len(pairs) < FEWEST_PAIRS or len(set(groups)) < 2:
        raise UserError(
            f"judge preference_model: {len(pairs)} pairs on {len(set(groups))} prompts are too few to fit on (it takes"
            f" {FEWEST_PAIRS} pairs on 2 prompts); raise the task's judge_pairs, give it more data, or set judge.kind=openai"
        )
    content = [[_text(pair.prompt, side) for side in (pair.chosen, pair.rejected)] for pair in pairs]
    held_out = [pair for pair in context.held_out if pair.paired]
    identity = {
        "format": FORMAT,
        "pairs": hash_value([groups, content]),
        "encoder": context.encoder,
        "options": asdict(options),
    }
    tested = [[_text(pair.prompt, side) for side in (pair.chosen, pair.rejected)] for pair in held_out]

    def build(folder):
        fitted = fit(_pair_features(context.embed, pairs), groups, options)
        scores = Scorer(fitted)(_pair_features(context.embed, held_out)) if held_out else []
        right = float(sum(map(_preference, scores)))
        write_json(folder / FILE, {**fitted, "held_out": {"n": len(held_out), "right": right}})

    artifact = context.store.artifact(KIND, {**identity, "held_out": hash_value(tested)}, build)
    fitted = read_json(artifact.path / FILE)
    return PreferenceModelJudge(f"preference_model:{key_of(identity)[:8]}", fitted, context)


class Scorer:
    """A fitted model: from raw features `(n, d + 1)` to the log-odds `(n,)` that the first response is preferred."""

    def __init__(self, fitted: dict):
        self._coefficients = np.array(fitted["coefficients"])
        self._length_scale = fitted["length_scale"]

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return _bounded(features, self._length_scale) @ self._coefficients


class PreferenceModelJudge:
    """See the module. `agreement` is the accuracy on the held-out pairs, None where there are none."""

    def __init__(self, id: str, fitted: dict, context: JudgeContext):
        self.id = id
        self._score = Scorer(fitted)
        self._embed = context.embed
        right, n = fitted["held_out"]["right"], fitted["held_out"]["n"]
        self.agreement = Agreement(right / n, *wilson_interval(right, n), n, context.labels) if n else None

    def judge(self, comparisons: Sequence[Comparison], progress: Callable[[int], None]) -> list[Judgement]:
        """Return one judgement per comparison, in order; all are computed at once, and `progress` is told once."""
        if not comparisons:
            return []
        responses, baselines = [c.response for c in comparisons], [c.baseline for c in comparisons]
        scores = self._score(_features(self._embed, [c.prompt for c in comparisons], responses, baselines))
        progress(len(comparisons))
        return [
            Judgement(c.id, "tie" if score == 0 else "ok", _preference(score))
            for c, score in zip(comparisons, scores, strict=True)
        ]


def fit(features: np.ndarray, groups: Sequence[str], options: PreferenceModelOptions) -> dict:
    """Fit the regression to raw features of chosen - rejected, (n, d + 1); return what describes it, as JSON can hold.

    That is C, the validation losses, the scale of the differences in length (their root mean square), and the
    coefficients. Of `options.C` the one with the lowest log-loss on left-out groups is taken, the strongest penalty among equals.
    """
    from sklearn.model_selection import GroupKFold

    scale = float(np.sqrt((features[:, -1] ** 2).mean())) or 1.0
    features = _bounded(features, scale)
    folds = list(GroupKFold(min(options.folds, len(set(groups)))).split(features, groups=groups))
    losses = {}
    for c in sorted(set(options.C)):
        margins = [features[test] @ _coefficients(features[train], c) for train, test in folds]
        losses[c] = float(np.logaddexp(0, -np.concatenate(margins)).mean())
    best = min(losses, key=losses.__getitem__)
    coefficients = _coefficients(features, best).tolist()
    return {"C": best, "validation_loss": losses, "length_scale": scale, "coefficients": coefficients}


def _coefficients(features: np.ndarray, c: float) -> np.ndarray:
    """Each pair stands twice, as it is and swapped, at half weight: the classes are balanced and the loss is the same."""
    from sklearn.linear_model import LogisticRegression

    n = len(features)
    model = LogisticRegression(C=c, fit_intercept=False, max_iter=1000, tol=1e-6)
    model.fit(np.concatenate([features, -features]), np.repeat([1, 0], n), sample_weight=np.full(2 * n, 0.5))
    return model.coef_[0]


def _bounded(features: np.ndarray, scale: float) -> np.ndarray:
    """Return the features with the difference of log lengths as tanh(difference / scale), in (-1, 1)."""
    return np.column_stack([features[:, :-1], np.tanh(features[:, -1] / scale)])


def _pair_features(embed: Callable, pairs: Sequence[Preference]) -> np.ndarray:
    """Return the raw features of chosen against rejected, (n, d + 1)."""
    return _features(embed, [p.prompt for p in pairs], [p.chosen for p in pairs], [p.rejected for p in pairs])


def _features(embed: Callable, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
    """Return the differences of the features, (n, d + 1) float64, exactly 0 where the two responses are the same.

    The two sides are embedded in separate calls, because the second, the task's baselines, is the same for all
    policies, and the encoder keeps what it has computed.
    """
    one, other = (
        np.asarray(
            embed([_text(prompt, response) for prompt, response in zip(prompts, side, strict=True)]), dtype=float
        )
        for side in (first, second)
    )
    lengths = np.array([math.log1p(len(a)) - math.log1p(len(b)) for a, b in zip(first, second, strict=True)])
    differences = np.column_stack([one - other, lengths])
    differences[[a == b for a, b in zip(first, second, strict=True)]] = 0  # the encoder's rounding depends on the batch
    return differences


def _text(prompt: Prompt, response: str) -> str:
    """Return what is embedded: the end of the last user turn, and the response.

    The response comes last, because the encoder keeps the end of a text that is too long. A long turn is cut, because
    it stands on both sides of the difference: the whole of TL;DR's posts took three times as long and told no more.
    """
    asked = next((message.content for message in reversed(prompt) if message.role == "user"), "")
    return f"{asked[-ASKED:]}\n\n{response}"


def _preference(score: float) -> float:
    return 0.5 if score == 0 else float(score > 0)
