"""Scores of the responses, for data that have them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from harness.training.batch import EffectiveBatch
from harness.training.supply import Column, Split


def scores(split: Split, plan: Iterable[EffectiveBatch]) -> Column:
    """Return the scores of each example's chosen and rejected response."""
    return Column(*(np.array([e.scores[side] for e in split.examples], dtype=np.float32) for side in (0, 1)))
