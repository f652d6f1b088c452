"""The assignment of examples to effective batches, which depends only on the seed and is the same for every loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np

from harness.core.prompt import Prompt

T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """A preference by indices into its split's sequences; unpaired data has only one of the two.

    `scores` are those of chosen, rejected and the others, if the data have scores.
    """

    prompt: Prompt
    chosen: int | None
    rejected: int | None
    scores: tuple[float, ...] = ()
    others: tuple[int, ...] = ()


@dataclass(frozen=True)
class EffectiveBatch:
    """The examples of one optimiser step.

    `chosen_examples` and `rejected_examples` index, in `examples`, those whose chosen or rejected response is in the
    batch. `data` is the kind of data that the loss reads; pairs and lists stay together. `seeds` seeds every random
    draw for the batch.
    """

    examples: Sequence[Example]
    data: str
    chosen_examples: list[int]
    rejected_examples: list[int]
    seeds: tuple[int, ...] = ()

    @property
    def chosen(self) -> list[int]:
        """Sequence indices of the chosen responses."""
        return [_row(self.examples[i].chosen) for i in self.chosen_examples]

    @property
    def rejected(self) -> list[int]:
        """Sequence indices of the rejected responses."""
        return [_row(self.examples[i].rejected) for i in self.rejected_examples]

    @property
    def others(self) -> list[tuple[int, ...]]:
        """The sequence indices of the further responses to each pair's prompt in a listwise batch."""
        return [self.examples[i].others for i in self.chosen_examples] if self.data == "listwise" else []

    @property
    def rows(self) -> list[int]:
        """All sequence indices: chosen, rejected, then the others, pair by pair."""
        return self.chosen + self.rejected + [index for others in self.others for index in others]

    def groups(self) -> list[list[int]]:
        """Return the groups of positions in `rows` that must share a forward pass: those of a pair or list."""
        wins, count = len(self.chosen_examples), len(self.rows)
        if self.data == "unpaired":
            return [[i] for i in range(count)]
        ends = 2 * wins + np.cumsum([len(others) for others in self.others] or [0] * wins)
        return [
            [i, wins + i, *range(start, end)]
            for i, (start, end) in enumerate(zip([2 * wins, *ends[:-1]], ends, strict=True))
        ]

    def mismatched(self) -> list[tuple[int, int]]:
        """Pair each response's prompt with a response to another prompt: a derangement of the batch.

        Returns (sequence index with the prompt, sequence index with the completion). If more than half of the batch
        answers one prompt, the responses without a partner are left out, possibly all of them.
        """
        rows = self.chosen + self.rejected
        by_prompt: dict[Prompt, list[int]] = {}
        for position, example in enumerate(self.chosen_examples + self.rejected_examples):
            by_prompt.setdefault(self.examples[example].prompt, []).append(position)
        # Equal prompts are adjacent, so rotating by the largest group never pairs a prompt with itself if avoidable.
        order = [p for positions in _shuffled(list(by_prompt.values()), *self.seeds, 2) for p in positions]
        largest = max(map(len, by_prompt.values()))
        prompt_of = {position: prompt for prompt, positions in by_prompt.items() for position in positions}
        rotated = order[largest:] + order[:largest]
        return [(rows[a], rows[b]) for a, b in zip(order, rotated, strict=True) if prompt_of[a] != prompt_of[b]]

    def part(self, positions: Sequence[int]) -> EffectiveBatch:
        """Return the batch with only the groups at these positions in `rows`, in the original order."""
        wins, ordered = len(self.chosen_examples), sorted(positions)
        losses = wins + len(self.rejected_examples)
        return replace(
            self,
            chosen_examples=[self.chosen_examples[i] for i in ordered if i < wins],
            rejected_examples=[self.rejected_examples[i - wins] for i in ordered if wins <= i < losses],
        )


def _row(row: int | None) -> int:
    assert row is not None, "a batch holds the sides that its examples have"
    return row


class Epochs(Generic[T]):
    """The batches of several epochs of equal length. An epoch's batches are made when one of them is requested."""

    def __init__(self, epochs: int, make: Callable[[int], list[T]]):
        self._epochs, self._make = epochs, lru_cache(maxsize=1)(make)
        self._steps = len(self._make(0))

    def __len__(self) -> int:
        return self._epochs * self._steps

    def __getitem__(self, k: int, /) -> T:
        epoch, step = divmod(k, self._steps)
        return self._make(epoch)[step]

    def __iter__(self) -> Iterator[T]:
        return (self[k] for k in range(len(self)))


def effective_batches(
    examples: Sequence[Example], *, batch_size: int, data: str, seed: int, epoch: int
) -> list[EffectiveBatch]:
    """Return the effective batches of one epoch, in order, of nearly equal size and at most `batch_size` pairs.

    Every example is used exactly once per epoch. For `data="paired"` row i of both sides is a pair;
    `data="listwise"` has the same pairs in the same batches, plus the further responses to their prompts. For
    `data="unpaired"` the two classes are shuffled separately, so that a batch contrasts chosen and rejected responses
    to different prompts. Such a batch holds as many responses as one of pairs, with each class in proportion, so that
    steps, tokens and data match those of the paired losses. If both classes exist, every batch contains both: when one
    class has fewer examples than there would be batches, the batches are fewer and larger.
    """
    chosen = [i for i, e in enumerate(examples) if e.chosen is not None]
    rejected = [i for i, e in enumerate(examples) if e.rejected is not None]
    steps = max(1, min(math.ceil((len(chosen) + len(rejected)) / (2 * batch_size)), len(chosen), len(rejected)))
    chosen = _shuffled(chosen, seed, epoch, 0)
    rejected = _shuffled(rejected, seed, epoch, 1) if data == "unpaired" else chosen
    return [
        EffectiveBatch(examples, data, list(wins), list(losses), (seed, epoch, step))
        for step, (wins, losses) in enumerate(
            zip(np.array_split(chosen, steps), np.array_split(rejected, steps), strict=True)
        )
    ]


def _shuffled(items: list[T], *seeds: int) -> list[T]:
    order = np.random.default_rng(seeds).permutation(len(items))
    return [items[i] for i in order]


def sft_batches(sequences: Sequence[int], *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return one epoch of sequence indices in shuffled, nearly equal batches of at most `batch_size`."""
    steps = math.ceil(len(sequences) / batch_size)
    return [list(part) for part in np.array_split(_shuffled(list(sequences), seed, epoch, 0), steps)]
