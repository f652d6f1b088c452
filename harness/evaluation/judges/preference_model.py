"""The offline judge: a logistic regression that learns from labelled pairs which of two responses people prefer.

Its input is the difference of two rows of features (see `features`), and it has no intercept. The blocks of features
and the strength of the penalty are selected by cross-validated log-loss on left-out prompts; the margins on those
prompts calibrate its probability (by a slope only: Platt 1999 without the intercept). The model is antisymmetric:
swapping the responses inverts its preference, so it is independent of the order. It is a weak judge; its accuracy on
pairs that it has not seen is reported with every result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from harness.core.dials import dial
from harness.core.errors import UserError
from harness.core.hashing import hash_value
from harness.core.prompt import Prompt
from harness.core.records import Agreement, Judgement
from harness.core.store import key_of, read_json, write_json
from harness.evaluation.base import Comparison, JudgeContext, register_judge
from harness.evaluation.judges.features import BLOCKS, EMBEDDING, STYLE, Features, asked, embedded
from harness.evaluation.statistics.intervals import wilson_interval
from harness.tasks.base import Preference
from losses.registry import nearest

KIND = "preference-models"
FILE = "model.json"
FORMAT = 3  # incremented when the features or the fit change
FEWEST_PAIRS = 20
SLOPES = (0.01, 10.0)  # search interval of the calibration; at the lower end, probabilities are all close to 0.5


@dataclass
class PreferenceModelOptions:
    """The settings under `judge:` in an experiment file."""

    features: list[str] = dial(["style", "style+embedding", "style+words+embedding"])
    C: list[float] = dial([0.01, 0.1, 1.0, 10.0], above=0)  # as in scikit-learn: large is weak
    # Folds of the cross-validation that selects both; pairs of one prompt stay together.
    folds: int = dial(5, at_least=2)

    @property
    def blocks(self) -> list[str]:
        """All blocks named in any candidate, in a fixed order."""
        return [block for block in BLOCKS if any(block in candidate.split("+") for candidate in self.features)]


def check(options: PreferenceModelOptions) -> None:
    """Raise `UserError` for unknown features, or for nothing to choose from."""
    if not options.C:
        raise UserError("judge.C is empty; name strengths of the penalty, such as 1.0")
    if not options.features:
        raise UserError(f"judge.features is empty; name sums of {', '.join(BLOCKS)}")
    for block in (block for candidate in options.features for block in candidate.split("+")):
        if block not in BLOCKS:
            raise UserError(f"judge.features: unknown block {block!r}{nearest(block, BLOCKS)}")


@register_judge("preference_model", options=PreferenceModelOptions, check=check)
def make(options: PreferenceModelOptions, context: JudgeContext) -> PreferenceModelJudge:
    """Return the judge of one task, fitted on `context.fit` (cached in the store) and measured on `context.held_out`.

    Raises `UserError` if there are too few pairs to fit on.
    """
    pairs = [pair for pair in context.fit if pair.paired]
    groups = [hash_value([[message.role, message.content] for message in pair.prompt]) for pair in pairs]
    if len(pairs) < FEWEST_PAIRS or len(set(groups)) < 2:
        raise UserError(
            f"judge preference_model: {len(pairs)} pairs on {len(set(groups))} prompts are too few to fit on "
            f"(it takes {FEWEST_PAIRS} pairs on 2 prompts); "
            "raise the task's judge_pairs, give it more data, or set judge.kind=openai"
        )
    held_out = [pair for pair in context.held_out if pair.paired]
    identity = {
        "format": FORMAT,
        "pairs": hash_value([groups, _content(pairs)]),
        "encoder": context.encoder if EMBEDDING in options.blocks else "",
        "options": asdict(options),
    }

    def build(folder: Path) -> None:
        features = Features(options.blocks, context.embed)
        features.fit([text for pair in pairs for text in (pair.chosen, pair.rejected)])
        fitted = {"words": features.state, **fit(_differences(features, *_sides(pairs)), groups, options)}
        margins = Scorer(fitted, context.embed)(*_sides(held_out)) if held_out else np.zeros(0)
        right = float(sum(0.5 if margin == 0 else float(margin > 0) for margin in margins))
        loss = float(np.logaddexp(0, -fitted["slope"] * margins).mean()) if held_out else None
        write_json(folder / FILE, {**fitted, "held_out": {"n": len(held_out), "right": right, "log_loss": loss}})

    artifact = context.store.artifact(KIND, {**identity, "held_out": hash_value(_content(held_out))}, build)
    fitted = read_json(artifact.path / FILE)
    return PreferenceModelJudge(f"preference_model:{key_of(identity)[:8]}", fitted, context)


class Scorer:
    """A fitted model: maps prompts, first and second responses to margins `(n,)`, above 0 if the first is better.

    A margin times the model's `slope` is the log-odds that the first response is preferred.
    """

    def __init__(self, fitted: dict, embed: Callable):
        self._fitted = fitted
        self._features = Features(fitted["features"].split("+"), embed, fitted["words"])

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        differences = _differences(self._features, prompts, first, second)
        return _design(differences, self._features.blocks, self._fitted["scale"]) @ np.array(
            self._fitted["coefficients"]
        )


class PreferenceModelJudge:
    """See the module. `agreement` is the accuracy on the held-out pairs, None if there are none."""

    def __init__(self, id: str, fitted: dict, context: JudgeContext):
        self.id = id
        self._score = Scorer(fitted, context.embed)
        self._slope = fitted["slope"]
        right, n = fitted["held_out"]["right"], fitted["held_out"]["n"]
        self.agreement = Agreement(right / n, *wilson_interval(right, n), n, context.labels) if n else None

    def judge(self, comparisons: Sequence[Comparison], progress: Callable[[int], None]) -> list[Judgement]:
        """Return one judgement per comparison, in order; all are computed at once, and `progress` is called once."""
        if not comparisons:
            return []
        responses, baselines = [c.response for c in comparisons], [c.baseline for c in comparisons]
        margins = self._score([c.prompt for c in comparisons], responses, baselines)
        progress(len(comparisons))
        return [
            Judgement(c.id, "tie" if margin == 0 else "ok", float(1 / (1 + np.exp(-self._slope * margin))))
            for c, margin in zip(comparisons, margins, strict=True)
        ]


def fit(differences: dict[str, np.ndarray], groups: Sequence[str], options: PreferenceModelOptions) -> dict:
    """Fit the regression to differences (chosen - rejected) by block, each (n, d); return a JSON-serialisable dict.

    The dict has the blocks (`features`), C, the validation losses of all candidates, the scale of the style differences
    (root mean squares), the coefficients, and the calibration slope. The candidate with the lowest log-loss on left-out
    `groups` is selected; of equal ones, the earlier candidate and the stronger penalty.
    """
    from scipy.optimize import minimize_scalar
    from sklearn.model_selection import GroupKFold

    scale = None
    if STYLE in differences:
        scale = np.sqrt((differences[STYLE] ** 2).mean(axis=0))
        scale = np.where(scale > 0, scale, 1.0).tolist()
    folds = list(GroupKFold(min(options.folds, len(set(groups)))).split(groups, groups=groups))
    losses: dict[str, dict[str, float]] = {}
    best = None
    for candidate in options.features:
        design = _design(differences, candidate.split("+"), scale)
        for c in sorted(set(options.C)):
            margins = np.zeros(len(design))
            for train, test in folds:
                margins[test] = design[test] @ _coefficients(design[train], c)
            loss = float(np.logaddexp(0, -margins).mean())
            losses.setdefault(candidate, {})[str(c)] = loss
            if best is None or loss < best[0]:
                best = (loss, candidate, c, margins)
    _, candidate, c, margins = best
    slope = minimize_scalar(lambda a: np.logaddexp(0, -a * margins).mean(), bounds=SLOPES, method="bounded").x
    coefficients = _coefficients(_design(differences, candidate.split("+"), scale), c).tolist()
    return {
        "features": candidate,
        "C": c,
        "validation_loss": losses,
        "scale": scale,
        "slope": float(slope),
        "coefficients": coefficients,
    }


def _coefficients(design: np.ndarray, c: float) -> np.ndarray:
    """Return the fitted coefficients, (d,).

    Each pair is used twice with weight 0.5, once swapped, which balances the classes and leaves the loss unchanged.
    """
    from sklearn.linear_model import LogisticRegression

    n = len(design)
    model = LogisticRegression(C=c, fit_intercept=False, max_iter=1000, tol=1e-6)
    model.fit(np.concatenate([design, -design]), np.repeat([1, 0], n), sample_weight=np.full(2 * n, 0.5))
    return model.coef_[0]


def _design(differences: dict[str, np.ndarray], blocks: Sequence[str], scale: Sequence[float] | None) -> np.ndarray:
    """Return the concatenated blocks, with style differences as tanh(difference / scale), in (-1, 1).

    They are bounded so that a response does not win by being longer (or otherwise more extreme) than any in the fit.
    """
    columns = {**differences}
    if STYLE in blocks:
        columns[STYLE] = np.tanh(differences[STYLE] / np.array(scale))
    return np.column_stack([columns[block] for block in BLOCKS if block in blocks])


def _differences(
    features: Features, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return the differences of the features by block, exactly 0 for identical responses.

    The two sides are embedded in separate calls, because the second side, the task's baselines, is the same for all
    policies, and the encoder caches its results.
    """
    one, other = features(prompts, first), features(prompts, second)
    same = [a == b for a, b in zip(first, second, strict=True)]
    differences = {block: one[block] - other[block] for block in features.blocks}
    for rows in differences.values():
        rows[same] = 0  # the encoder's rounding depends on the batch
    return differences


def _sides(pairs: Sequence[Preference]) -> tuple[list[Prompt], list[str], list[str]]:
    return [p.prompt for p in pairs], [p.chosen for p in pairs], [p.rejected for p in pairs]


def _content(pairs: Sequence[Preference]) -> list:
    """Return the parts of the pairs that determine a fit: the questions and the texts to embed."""
    return [[asked(p.prompt), embedded(p.prompt, p.chosen), embedded(p.prompt, p.rejected)] for p in pairs]
