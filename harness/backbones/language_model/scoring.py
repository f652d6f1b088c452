"""Computations that are done once and shared: the reference's log-probs and the frozen trunk's activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.backbones.language_model.decoder import hidden_size
from harness.backbones.language_model.policy import LanguageModel
from harness.backbones.language_model.rows import TokenBatch, collate, layout, micro_batches, padded_tokens
from harness.backbones.language_model.token_values import by_row
from harness.backbones.language_model.tokens import Tokens, hash_sequences
from harness.core.config import ModelConfig
from harness.core.errors import UserError
from harness.core.store import Artifact, Store
from harness.training.base import LogProbs, Progress


def offsets_of(lengths: Sequence[int]) -> np.ndarray:
    """Return the start of each concatenated piece, and the end of the last."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def reference_logprobs(
    store: Store, load: Callable[[], LanguageModel], weights: str, dtype: str, batches: BatchSource, progress: Progress
) -> LogProbs:
    """Return the reference's per-token log-probs, computed once for (weights, token data, compute dtype).

    The key contains no loss, seed, path or option. `load` returns the reference and is called only if needed.
    """

    def build(folder: Path) -> None:
        (scored,) = batches.score([load()], progress)
        np.save(folder / "values.npy", scored.values)
        np.save(folder / "offsets.npy", scored.offsets)

    inputs = {"weights": weights, "tokens": hash_sequences(batches.sequences), "dtype": dtype, "format": 1}
    artifact = store.artifact("reference", inputs, build)
    return LogProbs(*(np.load(artifact.path / f"{name}.npy", allow_pickle=False) for name in ("values", "offsets")))


@dataclass
class BatchSource:
    """Makes token batches from a fixed list of sequences, with the trunk's activations if they were computed.

    `budget` is the number of tokens of a forward pass, padding included; `shared` says whether prompts share a row.
    """

    sequences: Sequence[Tokens]
    pad_token: int
    budget: int
    shared: bool = False
    trunk: Artifact | None = None

    def __post_init__(self) -> None:
        self._hidden = (
            np.load(self.trunk.path / "hidden.npy", mmap_mode="r", allow_pickle=False) if self.trunk else None
        )

    def __len__(self) -> int:
        return len(self.sequences)

    def tokens(self, rows: Sequence[int]) -> int:
        """Return the number of tokens of a forward pass of these sequences, padding included."""
        return padded_tokens([self.sequences[i] for i in rows], shared=self.shared)

    def lengths(self, rows: Sequence[int]) -> Tensor:
        """Return `(len(rows),)` int64 completion tokens."""
        return torch.tensor([len(self.sequences[i].completion) for i in rows], dtype=torch.long)

    def passes(self, rows: Sequence[int], groups: Sequence[Sequence[int]]) -> list[list[int]]:
        """Split groups of positions in `rows` into forward passes of at most `budget` tokens (see `micro_batches`)."""
        return micro_batches(groups, [self.sequences[i] for i in rows], self.budget, shared=self.shared)

    def all_passes(self) -> list[list[int]]:
        """Split all sequences into forward passes; return the indices of each."""
        rows = range(len(self))
        return self.passes(rows, [[i] for i in rows])

    def outputs(self, policy: LanguageModel, rows: Sequence[int], *, by_token: bool = False) -> Tensor:
        """Return `(len(rows),)` log-probs of completions, or log-probs and values of their tokens (see `Source`)."""
        batch = self.batch(rows, policy)
        if by_token:
            return by_row(policy.with_values(batch), batch.sequence, len(rows))
        flat = policy(batch)
        return flat.new_zeros(len(rows)).index_add(0, batch.sequence, flat)

    def confidences(self, policy: LanguageModel, rows: Sequence[int]) -> Tensor:
        """Return `(len(rows),)` the policy's confidence in each completion: the mean over its tokens."""
        batch = self.batch(rows, policy)
        flat = policy.confidences(batch)
        summed = flat.new_zeros(len(rows)).index_add(0, batch.sequence, flat)
        return summed / torch.bincount(batch.sequence, minlength=len(rows))

    @torch.no_grad()
    def score(self, policies: Sequence[LanguageModel], progress: Progress = lambda done, total: None) -> list[LogProbs]:
        """Return the log-prob of every completion token of every sequence under each policy, in eval mode.

        The policies share their frozen trunk, which runs once for all of them.
        """
        offsets = offsets_of([len(s.completion) for s in self.sequences])
        scored = [LogProbs(np.zeros(offsets[-1], dtype=np.float32), offsets) for _ in policies]
        done = 0
        for rows in self.all_passes():
            batch = self.batch(rows, policies[0])
            if batch.hidden is None and policies[0].trunk is not None:
                batch.hidden = policies[0].trunk_activations(batch)
            ends = np.cumsum([len(self.sequences[i].completion) for i in rows])[:-1]
            for policy, result in zip(policies, scored, strict=True):
                policy.eval()
                for i, piece in zip(rows, np.split(policy(batch).cpu().numpy(), ends), strict=True):
                    result.values[offsets[i] : offsets[i + 1]] = piece
            done += len(rows)
            progress(done, len(self))
        return scored

    def crossed(self, pairs: Sequence[tuple[int, int]]) -> tuple[BatchSource, list[int]]:
        """Return a source of each pair's first prompt with its second completion, and the row of each pair in it."""
        return self._of([Tokens(self.sequences[i].prompt, self.sequences[j].completion) for i, j in pairs])

    def under(self, prompts: Sequence[tuple[int, ...]], rows: Sequence[int]) -> tuple[BatchSource, list[int]]:
        """Return a source of these rows' completions under other prompts, and the row of each in it."""
        return self._of([Tokens(prompt, self.sequences[i].completion) for prompt, i in zip(prompts, rows, strict=True)])

    def _of(self, sequences: Sequence[Tokens]) -> tuple[BatchSource, list[int]]:
        """Return a source of these sequences, deduplicated and without the trunk, and the row of each."""
        index: dict[Tokens, int] = {}
        places = [index.setdefault(tokens, len(index)) for tokens in sequences]
        return replace(self, sequences=list(index), trunk=None), places

    def batch(self, rows: Sequence[int], policy: LanguageModel) -> TokenBatch:
        """Return the sequences `rows` as one batch on the policy's device.

        Raises `UserError` for a sequence beyond the model's context: it would fail or change the others' log-probs.
        """
        sequences = [self.sequences[i] for i in rows]
        longest = max(map(len, sequences))
        if policy.context is not None and longest > policy.context:
            raise UserError(
                f"a sequence has {longest} tokens, and the context of the model {policy.context}; "
                "lower max_prompt_tokens or max_completion_tokens of the task"
            )
        batch = collate(sequences, self.pad_token, shared=self.shared)
        if self._hidden is not None:
            batch.hidden = torch.zeros((*batch.input_ids.shape, self._hidden.shape[1]), dtype=policy.compute_dtype)
            for row, columns, stored in self.places(rows):
                piece = torch.from_numpy(np.array(self._hidden[stored]))
                batch.hidden[row, columns] = piece.view(policy.compute_dtype)
        return batch.to(policy.device)

    def places(self, rows: Sequence[int]) -> Iterator[tuple[int, slice, slice]]:
        """Yield the row, the columns and the place in the store of each prompt and completion of a batch."""
        sequences = [self.sequences[i] for i in rows]
        for i, s, (row, start) in zip(rows, sequences, layout(sequences, shared=self.shared), strict=True):
            prompt, completion = (at[i] for at in self._stored)
            if start == len(s.prompt):
                yield row, slice(0, start), slice(prompt, prompt + start)
            yield row, slice(start, start + len(s.completion)), slice(completion, completion + len(s.completion))

    @cached_property
    def _stored(self) -> tuple[list[int], list[int]]:
        return stored_at(self.sequences)[:2]


def stored_at(sequences: Sequence[Tokens]) -> tuple[list[int], list[int], int]:
    """Return the offsets of each sequence's prompt and completion in the trunk's store, and its number of tokens.

    Each prompt is stored once, because under causal attention it is the same before every completion.
    """
    seen: dict[tuple[int, ...], int] = {}
    prompts, completions, end = [], [], 0
    for s in sequences:
        if s.prompt not in seen:
            seen[s.prompt] = end
            end += len(s.prompt)
        prompts.append(seen[s.prompt])
        completions.append(end)
        end += len(s.completion)
    return prompts, completions, end


def trunk_activations(
    store: Store,
    load: Callable[[], LanguageModel],
    weights: str,
    config: ModelConfig,
    batches: BatchSource,
    progress: Progress,
) -> Artifact:
    """Return the frozen trunk's activations for all sequences, `(tokens, d)`, computed once and memory-mapped.

    `load` returns a policy with the base model `weights` and is called only if needed. bf16 is stored bit by bit as
    int16, because numpy has no bf16.
    """
    sequences = batches.sequences

    def build(folder: Path) -> None:
        policy = load()
        bits = np.float32 if policy.compute_dtype == torch.float32 else np.int16
        shape = (stored_at(sequences)[-1], hidden_size(policy.model))
        hidden = np.lib.format.open_memmap(folder / "hidden.npy", mode="w+", dtype=bits, shape=shape)
        done = 0
        for rows in batches.all_passes():
            activations = policy.trunk_activations(batches.batch(rows, policy)).cpu()
            if bits is np.int16:
                activations = activations.view(torch.int16)
            for row, columns, stored in batches.places(rows):
                hidden[stored] = activations[row, columns].numpy()
            done += len(rows)
            progress(done, len(sequences))
        hidden.flush()

    inputs = {
        "weights": weights,
        "last_layers": config.last_layers,
        "tokens": hash_sequences(sequences),
        "dtype": config.dtype,
        "format": 2,
    }
    return store.artifact("trunk", inputs, build)
