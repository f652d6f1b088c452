"""The layout of sequences in rows and the split of a batch into passes. It affects speed and memory, not results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.backbones.language_model.tokens import Tokens

# Sharing a prompt saves every layer the prompt's tokens, but a completion appended to a row also attends to everything
# before it. At hidden size d a layer spends about 24 d^2 operations per token and 8 d per pair in attention, so
# appending pays while (tokens before) x (tokens appended) < 3 d x (prompt tokens). This is 3 d of a small model,
# because attention is less efficient than matrix products.
PAYS = 1024
MAX_PADDING = 0.1  # the largest fraction of padding in a forward pass,
SMALL = 512  # unless the pass has at most this many tokens, where fewer would hardly be faster


class _Rows:
    """The rows of a batch under construction, one per sequence: [prompt | completion].

    If prompts are `shared`, consecutive sequences with equal prompts share a row, [prompt | completion | completion
    ...], as long as that pays.
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
        """The number of tokens of the rows, padded to the longest."""
        return len(self.ends) * max(self.ends)

    def fit(self, budget: int) -> bool:
        """Whether the rows fit the budget with little padding."""
        padding = self.padded - sum(self.ends)
        return self.padded <= budget and (self.padded <= SMALL or padding <= MAX_PADDING * self.padded)


def layout(sequences: Sequence[Tokens], *, shared: bool) -> list[tuple[int, int]]:
    """Return for each sequence its row in a batch and the column where its completion starts.

    The row begins with its prompt. If prompts are `shared`, other completions may come between the two.
    """
    rows = _Rows(shared)
    return [rows.add(sequence) for sequence in sequences]


def padded_tokens(sequences: Sequence[Tokens], *, shared: bool) -> int:
    """Return the number of tokens of a batch of the sequences, padding included."""
    return _Rows(shared).plus(sequences).padded


def micro_batches(
    groups: Sequence[Sequence[int]], sequences: Sequence[Tokens], budget: int, *, shared: bool
) -> list[list[int]]:
    """Split groups of sequences (a pair, a list or a single response) into forward passes; return the indices of each.

    As laid out by `collate`, a pass has at most `budget` tokens and, unless it is small, at most a tenth of padding. A
    group that exceeds the budget gets its own pass. Groups are sorted by length; if prompts are shared, groups of one
    prompt are adjacent.
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

    `input_ids` is `(rows, length)`. Completion token k is `targets[k]`, belongs to the collated sequence `sequence[k]`
    and is predicted at `position[k]`, a flat index into (rows, length); the last token of a shared prompt predicts the
    first token of each of its completions. `read` holds the distinct positions. `hidden`, `(rows, length, d)`, holds
    the frozen trunk's activations if they were precomputed.

    If any row holds more than one completion, `segments`, `(rows, length)`, is 0 in prompts, positive in completions
    and negative in padding, and `position_ids`, `(rows, length)`, restart after the prompt for each completion. Padding
    has position 0: some models look up or scale by the largest position of a pass, which must be that of a sequence.
    Otherwise both are None and no mask is needed: attention is causal and padding comes last, so no real token attends
    to it.
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
        """Return a decoder's inputs besides ids or hidden states: the mask and positions of shared prompts, or nothing.

        The mask, `(rows, 1, queries, keys)`, is added to attention scores: 0 at earlier tokens of the query's own
        segment and at the prompt, -inf elsewhere. (Each layer would have to convert a boolean mask to this.)
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
    """Lay sequences out in rows, padded on the right. Padding is determined by lengths, never by the id."""
    places = layout(sequences, shared=shared)
    height = places[-1][0] + 1
    length = max(start + len(s.completion) for (_, start), s in zip(places, sequences, strict=True))
    input_ids = torch.full((height, length), pad_token)
    segments = torch.full((height, length), -1)
    position_ids = torch.zeros((height, length), dtype=torch.long)
    position, sequence, targets = [], [], []
    for i, ((row, start), s) in enumerate(zip(places, sequences, strict=True)):
        prompt, end = len(s.prompt), start + len(s.completion)
        if start == prompt:
            input_ids[row, :prompt] = torch.tensor(s.prompt)
            segments[row, :prompt] = 0
            position_ids[row, :prompt] = torch.arange(prompt)
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
