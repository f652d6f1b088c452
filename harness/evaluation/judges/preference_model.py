"""The offline judge: a logistic regression that learns from labelled pairs which of two responses people prefer.

It sees a pair as the difference of two feature vectors (the sentence embedding of the last user turn with the
response, and the log of the response's length), without an intercept. So it is antisymmetric: swapping the responses
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
FORMAT = 1  # raised when the features or the fit change
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
    inputs = {
        "format": FORMAT,
        "pairs": hash_value([groups, content]),
        "encoder": context.encoder,
        "options": asdict(options),
    }

    def build(folder):
        prompts = [pair.prompt for pair in pairs]
        features = _features(context.embed, prompts, [p.chosen for p in pairs], [p.rejected for p in pairs])
        write_json(folder / FILE, fit(features, groups, options))

    artifact = context.store.artifact(KIND, inputs, build)
    coefficients = np.array(read_json(artifact.path / FILE)["coefficients"])
    return PreferenceModelJudge(f"preference_model:{key_of(inputs)[:8]}", coefficients, context)


class PreferenceModelJudge:
    """See the module. `agreement` is the accuracy on the held-out pairs, None where there are none."""

    def __init__(self, id: str, coefficients: np.ndarray, context: JudgeContext):
        self.id = id
        self._coefficients = coefficients
        self._embed = context.embed
        self.agreement = self._agreement([pair for pair in context.held_out if pair.paired], context.labels)

    def judge(self, comparisons: Sequence[Comparison], progress: Callable[[int], None]) -> list[Judgement]:
        """Return one judgement per comparison, in order; all are computed at once, and `progress` is told once."""
        scores = self._scores(
            [c.prompt for c in comparisons], [c.response for c in comparisons], [c.baseline for c in comparisons]
        )
        progress(len(comparisons))
        return [
            Judgement(c.id, "tie" if score == 0 else "ok", _preference(score))
            for c, score in zip(comparisons, scores, strict=True)
        ]

    def _scores(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """Return the log-odds that the first response is preferred, (n,)."""
        if not prompts:
            return np.zeros(0)
        return _features(self._embed, prompts, first, second) @ self._coefficients

    def _agreement(self, pairs: Sequence[Preference], labels: str) -> Agreement | None:
        if not pairs:
            return None
        scores = self._scores([p.prompt for p in pairs], [p.chosen for p in pairs], [p.rejected for p in pairs])
        right = sum(map(_preference, scores))
        return Agreement(right / len(pairs), *wilson_interval(right, len(pairs)), len(pairs), labels)


def fit(features: np.ndarray, groups: Sequence[str], options: PreferenceModelOptions) -> dict:
    """Fit the regression to (n, d) differences chosen - rejected; return C, its validation losses and d coefficients.

    Of `options.C` the one with the lowest log-loss on left-out groups is taken, the strongest penalty among equals.
    """
    from sklearn.model_selection import GroupKFold

    folds = list(GroupKFold(min(options.folds, len(set(groups)))).split(features, groups=groups))
    losses = {}
    for c in sorted(set(options.C)):
        margins = [features[test] @ _coefficients(features[train], c) for train, test in folds]
        losses[c] = float(np.logaddexp(0, -np.concatenate(margins)).mean())
    best = min(losses, key=losses.__getitem__)
    return {"C": best, "validation_loss": losses, "coefficients": _coefficients(features, best).tolist()}


def _coefficients(features: np.ndarray, c: float) -> np.ndarray:
    """Each pair stands twice, as it is and swapped, at half weight: the classes are balanced and the loss is the same."""
    from sklearn.linear_model import LogisticRegression

    n = len(features)
    model = LogisticRegression(C=c, fit_intercept=False, max_iter=1000, tol=1e-6)
    model.fit(np.concatenate([features, -features]), np.repeat([1, 0], n), sample_weight=np.full(2 * n, 0.5))
    return model.coef_[0]


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
