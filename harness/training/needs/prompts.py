"""Needs that are derived from the embeddings of prompts."""

from __future__ import annotations

from collections.abc import Iterable

from harness.training.batch import EffectiveBatch
from harness.training.needs.density import density_ratios as fitted_ratios
from harness.training.supply import Column, Split


def prompt_embeddings(split: Split, plan: Iterable[EffectiveBatch]) -> Column:
    """Return the embedding of each example's prompt, `(examples, d)`."""
    return Column.of_prompts(split.embed(split.examples))


def density_ratios(split: Split, plan: Iterable[EffectiveBatch]) -> Column:
    """Return p(chosen | x) / p(rejected | x) of each example's prompt, by a classifier fitted on the training split."""
    return Column.of_prompts(fitted_ratios(split.embed(split.train), split.train, split.embed(split.examples)))
