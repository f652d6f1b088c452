"""Which examples share an effective batch, and how an effective batch is cut into forward passes.

The first is part of the experiment: a function of the seed alone, the same for every loss. The second is a matter of
memory and speed, and changes no number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harness.training.data import Example, Tokens


@dataclass(frozen=True)
class EffectiveBatch:
    """Sequence indices of one optimiser step, with the examples that they came from (for prompt embeddings)."""

    chosen: list[int]
    rejected: list[int]
    chosen_examples: list[int]
    rejected_examples: list[int]


def effective_batches(
    examples: Sequence[Example], *, batch_size: int, data: str, seed: int, epoch: int
) -> list[EffectiveBatch]:
    """Return the effective batches of one epoch, in order: nearly equal parts of at most `batch_size` pairs.

    Every example is used exactly once an epoch. For `data="paired"` row i of both sides is a pair. For
    `data="unpaired"` the two classes are shuffled apart, so that a chosen response stands beside rejected ones to
    other prompts; a batch holds as many responses as one of pairs would, and of each class its share, so that steps,
    tokens and data are those of the paired losses. Both classes are in every batch, where there are both: with fewer
    of one than there would be batches, the batches are fewer and larger.
    """
    chosen = [i for i, e in enumerate(examples) if e.chosen is not None]
    rejected = [i for i, e in enumerate(examples) if e.rejected is not None]
    steps = max(1, min(math.ceil((len(chosen) + len(rejected)) / (2 * batch_size)), len(chosen), len(rejected)))
    chosen = _shuffled(chosen, seed, epoch, 0)
    rejected = chosen if data == "paired" else _shuffled(rejected, seed, epoch, 1)
    return [
        EffectiveBatch(
            [examples[i].chosen for i in wins], [examples[i].rejected for i in losses], list(wins), list(losses)
        )
        for wins, losses in zip(np.array_split(chosen, steps), np.array_split(rejected, steps), strict=True)
    ]


def _shuffled(indices: list[int], *seeds: int) -> list[int]:
    order = np.random.default_rng(seeds).permutation(len(indices))
    return [indices[i] for i in order]


def sft_batches(sequences: Sequence[int], *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return one epoch of sequence indices in shuffled, nearly equal batches of at most `batch_size`."""
    steps = math.ceil(len(sequences) / batch_size)
    return [list(part) for part in np.array_split(_shuffled(list(sequences), seed, epoch, 0), steps)]


def micro_batches(groups: Sequence[Sequence[int]], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut groups of rows (a pair, or one alone) into forward passes of at most `budget` padded tokens.

    `lengths[row]` is in tokens. Groups are sorted by their longest row, so that little is padded; a group that is
    over the budget by itself gets a pass of its own. Returns the rows of each pass.
    """
    passes: list[list[int]] = []
    longest = 0
    for group in sorted(groups, key=lambda g: -max(lengths[row] for row in g)):
        if not passes or (len(passes[-1]) + len(group)) * longest > budget:
            passes.append([])
            longest = max(lengths[row] for row in group)
        passes[-1].extend(group)
    return passes


@dataclass
class TokenBatch:
    """Right-padded rows of prompt + completion, ready for one forward pass.

    `input_ids` is `(rows, length)`. No mask is needed: attention is causal and padding comes last, so no real token
    sees it. Completion token number k is `targets[k]`, belongs to row `row[k]` and is predicted at `position[k]`
    (flat, into rows x length). `hidden`, `(rows, length, d)`, holds the frozen trunk's activations where they were
    precomputed.
    """

    input_ids: Tensor
    targets: Tensor
    position: Tensor
    row: Tensor
    hidden: Tensor | None = None

    def to(self, device: torch.device) -> TokenBatch:
        """Return the batch on another device."""
        return TokenBatch(*(None if t is None else t.to(device) for t in vars(self).values()))


def collate(sequences: Sequence[Tokens], pad_token: int) -> TokenBatch:
    """Pad sequences on the right to the longest of them. What is padding follows from lengths, never from the id."""
    length = max(len(s) for s in sequences)
    input_ids = torch.full((len(sequences), length), pad_token, dtype=torch.long)
    position, row, targets = [], [], []
    for r, s in enumerate(sequences):
        input_ids[r, : len(s)] = torch.tensor(s.prompt + s.completion)
        start = r * length + len(s.prompt) - 1
        position += range(start, start + len(s.completion))
        row += [r] * len(s.completion)
        targets += s.completion
    return TokenBatch(input_ids, *(torch.tensor(x, dtype=torch.long) for x in (targets, position, row)))
