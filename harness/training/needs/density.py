"""The density ratio of prompts: p(prompt | chosen) / p(prompt | rejected)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.training.batch import Example


def density_ratios(train: np.ndarray, examples: Sequence[Example], embeddings: np.ndarray) -> np.ndarray:
    """Return `(len(embeddings),)` p(chosen | x) / p(rejected | x), fp32, estimated by a logistic classifier.

    It is fitted on the prompt embeddings `train`, `(len(examples), d)`, with balanced classes; an example with both
    responses belongs to both classes.
    """
    from sklearn.linear_model import LogisticRegression

    chosen = [i for i, e in enumerate(examples) if e.chosen is not None]
    rejected = [i for i, e in enumerate(examples) if e.rejected is not None]
    classifier = LogisticRegression(class_weight="balanced", max_iter=1000)
    classifier.fit(train[chosen + rejected], [1] * len(chosen) + [0] * len(rejected))
    return np.exp(classifier.decision_function(embeddings)).astype(np.float32)
