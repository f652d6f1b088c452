"""How sequences are laid out in rows, and how a batch is cut into forward passes. Changes speed and memory, no number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.backbones.language_model.tokens import Tokens

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
