"""The gold reward of the controlled experiment: the probability that a review is positive, from a word classifier.

The classifier is a logistic regression on TF-IDF of words and pairs of adjacent words, fitted on reviews that neither
policies nor prompts use. In the experiment it is the ground truth by definition; its accuracy on held-out real
reviews is measured all the same and stored with it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from harness.core.assets import cache_folder
from harness.core.hashing import hash_value
from harness.core.store import build_artifact, key_of, read_json, write_json
from harness.tasks.reviews import Review, load_reviews
from harness.tasks.rewards.base import register_reward

NAME = "imdb_sentiment"
WORD = re.compile(r"\w+(?:'\w+)?")
FEWEST = 3  # minimum number of reviews with a word or pair for it to be a feature
STRENGTH = 10.0  # scikit-learn's C; a large value is weak regularisation
SHORT = 30  # length in words of the shortened reviews on which accuracy is measured too
FORMAT = 1  # incremented when the features or the fit change


class SentimentModel:
    """A fitted classifier: `weights` and `idf` by feature, and an intercept."""

    def __init__(self, features: Sequence[str], idf: np.ndarray, weights: np.ndarray, intercept: float):
        self.index = {feature: i for i, feature in enumerate(features)}
        self.idf, self.weights, self.intercept = idf, weights, intercept

    def __call__(self, text: str) -> float:
        """Return the probability that a text is positive; without a known word, the intercept alone decides."""
        counts = Counter(i for i in map(self.index.get, features_of(text)) if i is not None)
        at = np.fromiter(counts, dtype=int, count=len(counts))
        values = (1 + np.log(np.fromiter(counts.values(), dtype=float, count=len(counts)))) * self.idf[at]
        length = math.sqrt(float(values @ values)) or 1.0
        logit = float(values @ self.weights[at]) / length + self.intercept
        return 1 / (1 + math.exp(-logit))


def features_of(text: str) -> list[str]:
    """Return the lower-cased words of a text and its pairs of adjacent words."""
    words = WORD.findall(text.lower())
    return words + [f"{a} {b}" for a, b in pairwise(words)]


def fit(reviews: Sequence[Review]) -> SentimentModel:
    """Fit the classifier on rated reviews. Deterministic: uses no random numbers."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(analyzer=features_of, min_df=FEWEST, sublinear_tf=True)
    matrix = vectorizer.fit_transform(review.text for review in reviews)
    model = LogisticRegression(C=STRENGTH, max_iter=1000).fit(matrix, [review.positive for review in reviews])
    return SentimentModel(
        list(vectorizer.get_feature_names_out()), vectorizer.idf_, model.coef_[0], float(model.intercept_[0])
    )


def accuracy(model: SentimentModel, reviews: Sequence[Review], words: int | None = None) -> float:
    """Return the model's accuracy on reviews, or on the first `words` words of each."""
    texts = (" ".join(review.text.split()[:words]) for review in reviews)
    return float(np.mean([(model(text) > 0.5) == r.positive for text, r in zip(texts, reviews, strict=True)]))


def fitted_folder() -> Path:
    """Return the folder of the classifier, fitted to the packaged reviews on first use and kept in the user's cache.

    It contains `model.npz`, `features.json`, and `accuracy.json` with the accuracy on held-out reviews.
    """
    inputs = _inputs()

    def build(folder: Path) -> None:
        parts = load_reviews()
        model = fit(parts["reward"])
        np.savez(folder / "model.npz", idf=model.idf, weights=model.weights, intercept=model.intercept)
        write_json(folder / "features.json", list(model.index))
        held_out = parts["reward_test"]
        measured = {"n": len(held_out), "whole": accuracy(model, held_out), "short": accuracy(model, held_out, SHORT)}
        write_json(folder / "accuracy.json", {**measured, "short_words": SHORT, "fitted_on": len(parts["reward"])})

    return build_artifact(cache_folder() / f"sentiment-{key_of(inputs)}", "reward", inputs, build).path


@lru_cache(maxsize=1)
def _inputs() -> dict:
    """Return the inputs that determine the classifier."""
    rated = [[review.id, review.positive] for review in load_reviews()["reward"]]
    return {"format": FORMAT, "reviews": hash_value(rated), "fewest": FEWEST, "strength": STRENGTH}


@lru_cache(maxsize=1)
def _fitted() -> SentimentModel:
    folder = fitted_folder()
    with np.load(folder / "model.npz", allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return SentimentModel(
        read_json(folder / "features.json"), arrays["idf"], arrays["weights"], float(arrays["intercept"])
    )


@register_reward(NAME, version=lambda: key_of(_inputs()))
def imdb_sentiment(prompt: str, response: str) -> float:
    """Return the probability that the review formed by prompt and response is positive."""
    return _fitted()(f"{prompt} {response}")
