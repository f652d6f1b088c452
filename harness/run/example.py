"""Sequences as the model sees them in training: the text of their tokens, and the loss mask."""

from __future__ import annotations

from itertools import groupby

import torch

from harness.backbones.language_model.rows import collate
from harness.backbones.language_model.tokens import Tokens
from harness.core.records import SeenPart, SeenSequence
from harness.core.render import Renderer
from harness.experiment.cells import PlannedTask


def first_example(planned: PlannedTask, renderer: Renderer) -> list[SeenSequence]:
    """Return the completions of a task's first training example, each with its prompt; none if it trains nothing.

    Of a task that generates its preferences, this is the demonstration for SFT.
    """
    split = planned.prepared.splits.get("train")
    if split is None:
        return []
    example = split.examples[0]
    sides = {"demonstration" if planned.generation else "chosen": example.chosen, "rejected": example.rejected}
    return [seen(role, split.sequences[place], renderer) for role, place in sides.items() if place is not None]


def seen(role: str, sequence: Tokens, renderer: Renderer) -> SeenSequence:
    """Return a sequence as a batch holds it: ids and trained positions are read back from the collated batch."""
    batch = collate([sequence], renderer.pad_token)
    ids = batch.input_ids[0].tolist()
    trained = torch.zeros(len(ids), dtype=torch.bool)
    trained[batch.position + 1] = True
    runs = groupby(zip(ids, trained.tolist(), strict=True), key=lambda pair: pair[1])
    parts = tuple(SeenPart(renderer.text([i for i, _ in run], special=True), of_loss) for of_loss, run in runs)
    return SeenSequence(role, parts, len(ids), int(trained.sum()))
