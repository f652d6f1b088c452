"""Which examples share an effective batch, and how an effective batch is cut into forward passes.

The first is part of the experiment: a function of the seed alone, the same for every loss. The second is a matter of
memory and speed, and changes no number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from harness.backbones.language_model.tokens import Example, Tokens

T = TypeVar("T")


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
        return [self.examples[i].chosen for i in self.chosen_examples]

    @property
    def rejected(self) -> list[int]:
        """Sequence indices of the rejected responses."""
        return [self.examples[i].rejected for i in self.rejected_examples]

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
        rows, by_prompt = self.chosen + self.rejected, {}
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


# A prompt that is not computed again saves every layer as many tokens as it has; a completion appended to a row costs
# attention to all that stands before it. At hidden size d a layer spends about 24 d^2 operations on a token and 8 d on
# a pair in attention: appending pays while (tokens before) x (tokens appended) < 3 d x (prompt tokens). This is 3 d of
# a small model, because attention runs further below a machine's matrix rate than the rest.
PAYS = 1024
MAX_PADDING = 0.1  # of the tokens of a forward pass,
SMALL = 512  # unless it has so few that a shorter one would hardly be faster


class _Rows:
    """Rows of a batch that are being filled: one for each sequence, [prompt | completion].

    Where prompts are `shared`, neighbours with equal prompts stand in one row, [prompt | completion | completion ...],
    as far as that pays.
    """

    def __init__(self, shared: bool, ends: Sequence[int] = (), prompt: tuple[int, ...] | None = None):
        self.shared, self.ends, self.prompt = shared, list(ends), prompt

    def add(self, sequence: Tokens) -> tuple[int, int]:
        """Append a sequence; return its row and the column where its completion starts."""
        size = len(sequence.completion)
        if not self.shared or sequence.prompt != self.prompt or self.ends[-1] * size > PAYS * len(sequence.prompt):
            self.prompt = sequence.prompt
            self.ends.append(len(sequence.prompt))
        start = self.ends[-1]
        self.ends[-1] += size
        return len(self.ends) - 1, start

    def plus(self, sequences: Iterable[Tokens]) -> _Rows:
        """Return these rows with more sequences appended."""
        rows = _Rows(self.shared, self.ends, self.prompt)
        for sequence in sequences:
            rows.add(sequence)
        return rows

    @property
    def padded(self) -> int:
        """How many tokens the rows have, padded to the longest."""
        return len(self.ends) * max(self.ends)

    def fit(self, budget: int) -> bool:
        """Whether the rows are within the budget and hold little padding."""
        padding = self.padded - sum(self.ends)
        return self.padded <= budget and (self.padded <= SMALL or padding <= MAX_PADDING * self.padded)


def layout(sequences: Sequence[Tokens], *, shared: bool) -> list[tuple[int, int]]:
    """Return for each sequence its row in a batch and the column where its completion starts.

    The row begins with its prompt. Where prompts are `shared`, other completions of it may stand between the two.
    """
    rows = _Rows(shared)
    return [rows.add(sequence) for sequence in sequences]


def padded_tokens(sequences: Sequence[Tokens], *, shared: bool) -> int:
    """Return how many tokens a batch of the sequences has, with its padding."""
    return _Rows(shared).plus(sequences).padded


def micro_batches(
    groups: Sequence[Sequence[int]], sequences: Sequence[Tokens], budget: int, *, shared: bool
) -> list[list[int]]:
    """Cut groups of sequences (a pair, the responses of a list, one alone) into forward passes; return those of each.

    A pass has at most `budget` tokens and, but for small ones, a tenth of padding, both as `collate` lays it out. A
    group that has more by itself gets a pass of its own. Groups are sorted by length; where prompts are shared, those
    of one prompt are neighbours.
    """
    lengths = [max(_Rows(shared).plus(sequences[i] for i in group).ends) for group in groups]
    order = sorted(range(len(groups)), key=lambda g: -lengths[g])
    if shared:
        first: dict[tuple[int, ...], int] = {}
        prompts = [sequences[group[0]].prompt for group in groups]
        for place, g in enumerate(order):
            first.setdefault(prompts[g], place)
        order.sort(key=lambda g: first[prompts[g]])
    passes: list[list[int]] = []
    rows = _Rows(shared)
    for g in order:
        more = [sequences[i] for i in groups[g]]
        longer = rows.plus(more)
        if not passes or not longer.fit(budget):
            passes.append([])
            longer = _Rows(shared).plus(more)
        passes[-1].extend(groups[g])
        rows = longer
    return passes


@dataclass
class TokenBatch:
    """Right-padded rows of a prompt and its completions, ready for one forward pass.

    `input_ids` is `(rows, length)`. Completion token number k is `targets[k]`, belongs to sequence `sequence[k]` of
    those that were collated and is predicted at `position[k]` (flat, into rows x length); the last token of a shared
    prompt predicts the first one of each of its completions. `read` is each of these positions once. `hidden`,
    `(rows, length, d)`, holds the frozen trunk's activations where they were precomputed.

    Where a row holds more than one completion, `segments`, `(rows, length)`, is 0 in the prompt, positive in a
    completion and negative in padding, and `position_ids`, `(rows, length)`, start again after the prompt. Elsewhere
    both are None and no mask is needed: attention is causal and padding comes last, so no real token sees it.
    """

    input_ids: Tensor
    targets: Tensor
    position: Tensor
    sequence: Tensor
    read: Tensor
    segments: Tensor | None = None
    position_ids: Tensor | None = None
    hidden: Tensor | None = None

    def to(self, device: torch.device) -> TokenBatch:
        """Return the batch on another device."""
        return TokenBatch(*(None if t is None else t.to(device) for t in vars(self).values()))

    def inputs(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Return what a decoder needs besides ids or hidden states: nothing, or mask and positions of shared prompts.

        The mask, `(rows, 1, length, length)`, is added to scores: 0 where a query (third) may look, which is back in
        its own segment and at the prompt, and -inf elsewhere. (From one of truth values each layer would make this.)
        """
        if self.segments is None:
            return {}
        query, key = self.segments[:, None, :, None], self.segments[:, None, None, :]
        length = self.segments.shape[1]
        causal = torch.ones((length, length), dtype=torch.bool, device=key.device).tril()
        seen = causal & ((query == key) | (key == 0))
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
        return {"attention_mask": mask, "position_ids": self.position_ids}


def collate(sequences: Sequence[Tokens], pad_token: int, *, shared: bool = False) -> TokenBatch:
    """Lay sequences out in rows, padded on the right. What is padding follows from lengths, never from the id."""
    places = layout(sequences, shared=shared)
    height = places[-1][0] + 1
    length = max(start + len(s.completion) for (_, start), s in zip(places, sequences, strict=True))
    input_ids = torch.full((height, length), pad_token)
    segments = torch.full((height, length), -1)
    position_ids = torch.arange(length).repeat(height, 1)
    position, sequence, targets = [], [], []
    for i, ((row, start), s) in enumerate(zip(places, sequences, strict=True)):
        prompt, end = len(s.prompt), start + len(s.completion)
        if start == prompt:
            input_ids[row, :prompt] = torch.tensor(s.prompt)
            segments[row, :prompt] = 0
        input_ids[row, start:end] = torch.tensor(s.completion)
        segments[row, start:end] = i + 1
        position_ids[row, start:end] = torch.arange(prompt, prompt + len(s.completion))
        position += [row * length + prompt - 1, *range(row * length + start, row * length + end - 1)]
        sequence += [i] * len(s.completion)
        targets += s.completion
    flat = (torch.tensor(x, dtype=torch.long) for x in (targets, position, sequence, sorted(set(position))))
    batch = TokenBatch(input_ids, *flat)
    if height < len(sequences):
        batch.segments, batch.position_ids = segments, position_ids
    return batch
