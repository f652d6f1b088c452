"""What is computed once and shared: the reference's log-probs, and the activations of the frozen trunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.config import ModelConfig
from harness.store import Artifact, Store
from harness.training.batches import TokenBatch, collate, micro_batches
from harness.training.data import Tokens, hash_sequences
from harness.training.policy import Policy

Progress = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True)
class TokenLogProbs:
    """Per-token log-probs of many sequences, flat: those of sequence i are `values[offsets[i] : offsets[i + 1]]`."""

    values: np.ndarray
    offsets: np.ndarray

    def sums(self, rows: Sequence[int]) -> Tensor:
        """Return `(len(rows),)` fp32 summed log-probs."""
        return torch.tensor(
            [self.values[self.offsets[i] : self.offsets[i + 1]].sum(dtype=np.float64) for i in rows],
            dtype=torch.float32,
        )


def offsets_of(lengths: Sequence[int]) -> np.ndarray:
    """Return where each of the concatenated pieces starts, and where the last ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@torch.no_grad()
def score(
    policies: Sequence[Policy], batches: BatchSource, progress: Progress = lambda done, total: None
) -> list[TokenLogProbs]:
    """Return the log-prob of every completion token of every sequence under each policy, in eval mode.

    Policies of one experiment share their frozen trunk: it runs once for all of them.
    """
    sequences = batches.sequences
    offsets = offsets_of([len(s.completion) for s in sequences])
    scored = [TokenLogProbs(np.zeros(offsets[-1], dtype=np.float32), offsets) for _ in policies]
    done = 0
    for rows in batches.all_passes():
        batch = batches.batch(rows, policies[0])
        if batch.hidden is None and policies[0].trunk is not None:
            batch.hidden = policies[0].trunk_activations(batch.input_ids)
        ends = np.cumsum([len(sequences[i].completion) for i in rows])[:-1]
        for policy, result in zip(policies, scored, strict=True):
            policy.eval()
            for i, piece in zip(rows, np.split(policy(batch).cpu().numpy(), ends), strict=True):
                result.values[offsets[i] : offsets[i + 1]] = piece
        done += len(rows)
        progress(done, len(sequences))
    return scored


def reference_logprobs(
    store: Store, load: Callable[[], Policy], weights: str, dtype: str, batches: BatchSource, progress: Progress
) -> TokenLogProbs:
    """Return the reference's per-token log-probs, computed once for (weights, token data, compute dtype).

    No loss, seed, path or option stands in the key. `load` gives the reference where it is needed.
    """

    def build(folder: Path) -> None:
        (scored,) = score([load()], batches, progress)
        np.save(folder / "values.npy", scored.values)
        np.save(folder / "offsets.npy", scored.offsets)

    inputs = {"weights": weights, "tokens": hash_sequences(batches.sequences), "dtype": dtype, "format": 1}
    artifact = store.artifact("reference", inputs, build)
    return TokenLogProbs(
        *(np.load(artifact.path / f"{name}.npy", allow_pickle=False) for name in ("values", "offsets"))
    )


@dataclass
class BatchSource:
    """Makes token batches of a fixed list of sequences, with the trunk's activations where they were computed."""

    sequences: Sequence[Tokens]
    pad_token: int
    budget: int
    trunk: Artifact | None = None

    def __post_init__(self) -> None:
        self._offsets = offsets_of([len(s) for s in self.sequences])
        self._hidden = (
            np.load(self.trunk.path / "hidden.npy", mmap_mode="r", allow_pickle=False) if self.trunk else None
        )

    def all_passes(self) -> list[list[int]]:
        """Cut all sequences into forward passes; return the indices of each."""
        return micro_batches([[i] for i in range(len(self.sequences))], [len(s) for s in self.sequences], self.budget)

    def batch(self, rows: Sequence[int], policy: Policy) -> TokenBatch:
        """Return the rows as one batch on the policy's device."""
        batch = collate([self.sequences[i] for i in rows], self.pad_token)
        if self._hidden is not None:
            length = batch.input_ids.shape[1]
            hidden = torch.zeros((len(rows), length, self._hidden.shape[1]), dtype=policy.compute_dtype)
            for r, i in enumerate(rows):
                piece = torch.from_numpy(np.array(self._hidden[self._offsets[i] : self._offsets[i + 1]]))
                hidden[r, : len(piece)] = piece.view(policy.compute_dtype)
            batch.hidden = hidden
        return batch.to(policy.device)


def trunk_activations(
    store: Store,
    load: Callable[[], Policy],
    weights: str,
    config: ModelConfig,
    batches: BatchSource,
    progress: Progress,
) -> Artifact:
    """Return the frozen trunk's activations for all sequences, `(tokens, d)`, computed once and memory-mapped.

    `load` gives a policy on the base model `weights`, where it is needed. bf16 is stored by its bits, as int16:
    numpy has no such type.
    """
    sequences = batches.sequences

    def build(folder: Path) -> None:
        policy = load()
        offsets = offsets_of([len(s) for s in sequences])
        bits = np.float32 if policy.compute_dtype == torch.float32 else np.int16
        shape = (int(offsets[-1]), policy.model.config.hidden_size)
        hidden = np.lib.format.open_memmap(folder / "hidden.npy", mode="w+", dtype=bits, shape=shape)
        done = 0
        for rows in batches.all_passes():
            activations = policy.trunk_activations(batches.batch(rows, policy).input_ids).cpu()
            for i, row in zip(rows, activations, strict=True):
                piece = row[: len(sequences[i])].contiguous()
                hidden[offsets[i] : offsets[i + 1]] = (piece if bits is np.float32 else piece.view(torch.int16)).numpy()
            done += len(rows)
            progress(done, len(sequences))
        hidden.flush()

    inputs = {
        "weights": weights,
        "last_layers": config.last_layers,
        "tokens": hash_sequences(sequences),
        "dtype": config.dtype,
        "format": 1,
    }
    return store.artifact("trunk", inputs, build)
