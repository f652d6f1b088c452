"""The interface between training and a backbone: policies, sources of rows, and batches.

A backbone turns data into rows and runs a policy on them; training does not depend on tokens or layers. A row is one
response to one prompt. Its log-prob is a sum over parts, such as the tokens of a text or the noise draws of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from harness.training.checkpoint import Checkpoints

Progress = Callable[[int, int], None]  # (done, total)
Batch = TypeVar("Batch", covariant=True)


class Policy(Protocol):
    """A trainable model, which is also an `nn.Module`.

    `together` is true if all processes of a run must make the same number of forward passes, because the policy or its
    gradient is sharded over them; training sets it.
    """

    together: bool

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of its layers; log-probs are always fp32."""

    @property
    def device(self) -> torch.device:
        """Where its weights are."""

    def train(self, mode: bool = True) -> Any:
        """Turn dropout on."""

    def eval(self) -> Any:
        """Turn dropout off."""

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name, always in the same order."""

    def units(self) -> list[nn.Module]:
        """Return the modules that FSDP shards separately, inner ones first; the last is the policy itself."""

    def entries(self) -> tuple[str, ...]:
        """Return the names of the methods, besides `forward`, that a source calls to run the policy."""

    def save(self, folder: Path, *, write: bool = True) -> None:
        """Write the trained tensors to `folder`. All processes call it; the one with `write` writes."""


class Source(Protocol):
    """Numbered rows of data for policies of the same backbone.

    `budget` is the largest size of a forward pass, in the unit of `tokens`.
    """

    budget: int

    def __len__(self) -> int:
        """Return the number of rows."""

    def tokens(self, rows: Sequence[int]) -> int:
        """Return the size of a forward pass of these rows, padding included."""

    def lengths(self, rows: Sequence[int]) -> Tensor:
        """Return `(len(rows),)` int64: the number of parts of each row, over which means are taken."""

    def passes(self, rows: Sequence[int], groups: Sequence[Sequence[int]]) -> list[list[int]]:
        """Split groups of positions in `rows` into forward passes within the budget; return the positions of each.

        A group is never split, even if it exceeds the budget by itself.
        """

    def outputs(self, policy: Any, rows: Sequence[int], *, by_token: bool = False) -> Tensor:
        """Return the policy's outputs for rows in one forward pass, with gradient if torch records it.

        They are fp32 log-probs in nats, summed, `(len(rows),)`; with `by_token`, the log-probs and values of each part,
        `(len(rows), 2, T)`, where T is the largest number of parts of a row, padded with 0.
        """

    def score(self, policies: Sequence[Any], progress: Progress = ...) -> list[LogProbs]:
        """Return the log-probs of all rows under each policy, in eval mode and without gradient."""

    def crossed(self, pairs: Sequence[tuple[int, int]]) -> tuple[Source, list[int]]:
        """Return a source whose rows combine the prompt of the first with the response of the second row of each pair.

        Its rows are distinct; the list gives the row of each pair.
        """


@dataclass(frozen=True)
class LogProbs:
    """Log-probs of the parts of many rows, concatenated: row i is `values[offsets[i] : offsets[i + 1]]`, in nats."""

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def sums(self, rows: Sequence[int]) -> Tensor:
        """Return `(len(rows),)` fp32 summed log-probs."""
        return torch.tensor(
            [self.values[self.offsets[i] : self.offsets[i + 1]].sum(dtype=np.float64) for i in rows],
            dtype=torch.float32,
        )

    def padded(self, rows: Sequence[int], width: int) -> Tensor:
        """Return `(len(rows), width)` fp32 log-probs of each part, padded with 0 at the end."""
        values = torch.zeros(len(rows), width)
        for to, i in zip(values, rows, strict=True):
            piece = self.values[self.offsets[i] : self.offsets[i + 1]]
            to[: len(piece)] = torch.from_numpy(np.array(piece))
        return values


class Batches(Protocol[Batch]):
    """The batches of a run. Batch k is requested only when step k + 1 begins."""

    def __len__(self) -> int: ...

    def __getitem__(self, k: int, /) -> Batch: ...


@dataclass
class Job:
    """The processes, output folder, progress callback and checkpoints of one training run.

    `rows` is its log, which becomes `metrics.jsonl`.
    """

    accelerator: Accelerator
    folder: Path
    progress: Progress = lambda done, total: None
    checkpoints: Checkpoints | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)

    def log(self, row: dict[str, Any]) -> None:
        """Add a row to the log."""
        self.rows.append(row)
