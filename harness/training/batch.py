"""Which examples share an effective batch: a function of the seed alone, the same for every loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Generic, TypeVar, cast

import numpy as np

from harness.core.prompt import Prompt

T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """A preference by indices into its split's sequences; unpaired data has only one of the two.

    `scores` are those of chosen, rejected and the others, where the data have them.
    """

    prompt: Prompt
    chosen: int | None
    rejected: int | None
    scores: tuple[float, ...] = ()
    others: tuple[int, ...] = ()


@dataclass(frozen=True)
class EffectiveBatch:
    """The examples of one optimiser step, by their indices in `examples`: those whose chosen response is in it, and
    those whose rejected one is. `data` is the kind that the loss reads: pairs and lists stay together. What is drawn
    for the batch is drawn from `seeds`.
    """

    examples: Sequence[Example]
    data: str
    chosen_examples: list[int]
    rejected_examples: list[int]
    seeds: tuple[int, ...] = ()

    @property
    def chosen(self) -> list[int]:
        """Sequence indices of the chosen responses."""
        return [cast(int, self.examples[i].chosen) for i in self.chosen_examples]  # each has one, by definition

    @property
    def rejected(self) -> list[int]:
        """Sequence indices of the rejected responses."""
        return [cast(int, self.examples[i].rejected) for i in self.rejected_examples]  # each has one, by definition

    @property
    def others(self) -> list[tuple[int, ...]]:
        """For each pair of a listwise batch, the sequence indices of the further responses to its prompt."""
        return [self.examples[i].others for i in self.chosen_examples] if self.data == "listwise" else []

    @property
    def rows(self) -> list[int]:
        """All sequence indices: chosen, rejected, then the others of each pair in turn."""
        return self.chosen + self.rejected + [index for others in self.others for index in others]

    def groups(self) -> list[list[int]]:
        """Return the positions in `rows` that one forward pass must hold together: those of a pair or list."""
        wins, count = len(self.chosen_examples), len(self.rows)
        if self.data == "unpaired":
            return [[i] for i in range(count)]
        ends = 2 * wins + np.cumsum([len(others) for others in self.others] or [0] * wins)
        return [
            [i, wins + i, *range(start, end)]
            for i, (start, end) in enumerate(zip([2 * wins, *ends[:-1]], ends, strict=True))
        ]

    def mismatched(self) -> list[tuple[int, int]]:
        """Match each response's prompt with the response to another prompt: a derangement of the batch.

        Returns (sequence index with the prompt, sequence index with the completion). Where more than half of the batch
        answers one prompt, so many of its responses have no partner and are left out; none may be left.
        """
        rows = self.chosen + self.rejected
        by_prompt: dict[Prompt, list[int]] = {}
        for position, example in enumerate(self.chosen_examples + self.rejected_examples):
            by_prompt.setdefault(self.examples[example].prompt, []).append(position)
        # Prompts lie side by side: turned by the largest of them, none meets itself.
        order = [p for positions in _shuffled(list(by_prompt.values()), *self.seeds, 2) for p in positions]
        largest = max(map(len, by_prompt.values()))
        prompt_of = {position: prompt for prompt, positions in by_prompt.items() for position in positions}
        turned = order[largest:] + order[:largest]
        return [(rows[a], rows[b]) for a, b in zip(order, turned, strict=True) if prompt_of[a] != prompt_of[b]]

    def part(self, positions: Sequence[int]) -> EffectiveBatch:
        """Return the batch cut down to whole groups, given by positions in `rows`; the order stays."""
        wins, found = len(self.chosen_examples), sorted(positions)
        losses = wins + len(self.rejected_examples)
        return replace(
            self,
            chosen_examples=[self.chosen_examples[i] for i in found if i < wins],
            rejected_examples=[self.rejected_examples[i - wins] for i in found if wins <= i < losses],
        )


class Epochs(Generic[T]):
    """The batches of so many epochs, equally many in each. An epoch's are made when one of them is asked for."""

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
    """Return the effective batches of one epoch, in order: nearly equal parts of at most `batch_size` pairs.

    Every example is used exactly once an epoch. For `data="paired"` row i of both sides is a pair;
    `data="listwise"` has the same pairs in the same batches, with the further responses to their prompts. For
    `data="unpaired"` the two classes are shuffled apart, so that a chosen response stands beside rejected ones to
    other prompts; a batch holds as many responses as one of pairs would, and of each class its share, so that steps,
    tokens and data are those of the paired losses. Both classes are in every batch, where there are both: with fewer
    of one than there would be batches, the batches are fewer and larger.
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
