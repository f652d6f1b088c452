"""The contract between training and a backbone: what training knows of a policy, of data, and of its batches.

A backbone turns data into rows and runs a policy on them; training knows neither tokens nor layers. A row is one
response to one prompt. Its log-prob is a sum over parts: the tokens of a text, the noise draws of an image.
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
    """A model that is trained: also an `nn.Module`.

    `together` says whether all processes of a run must pass through it equally often, because it or its gradient is
    spread over them; training sets it.
    """

    together: bool

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of its layers; log-probs are fp32 in any case."""

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
        """Return the modules that FSDP slices one by one, inner ones first; the last is the policy itself."""

    def entries(self) -> tuple[str, ...]:
        """Return the names of the methods, besides `forward`, through which a source runs the policy."""

    def save(self, folder: Path, *, write: bool = True) -> None:
        """Write what was trained to `folder`. All processes take part; the one with `write` writes."""


class Source(Protocol):
    """Rows of data by number, which a policy of the same backbone reads.

    `budget` is the most that one forward pass may take, counted as `tokens` counts.
    """

    budget: int

    def __len__(self) -> int:
        """Return the number of rows."""

    def tokens(self, rows: Sequence[int]) -> int:
        """Return what a forward pass of these rows takes of the budget, with its padding."""

    def lengths(self, rows: Sequence[int]) -> Tensor:
        """Return `(len(rows),)` int64: of how many parts each row's log-prob is the sum. Means are taken over them."""

    def passes(self, rows: Sequence[int], groups: Sequence[Sequence[int]]) -> list[list[int]]:
        """Cut groups of positions in `rows` into forward passes within the budget; return the positions of each.

        A group stays in one pass, also where it takes more than the budget by itself.
        """

    def outputs(self, policy: Any, rows: Sequence[int], *, by_token: bool = False) -> Tensor:
        """Return what the policy makes of rows, by one forward pass, with gradient where torch records it.

        These are `(len(rows),)` fp32 summed log-probs in nats, or `by_token` `(len(rows), 2, T)` log-probs and values
        of each part, where T is the most parts that one of the rows has, and 0 stands behind a row's last.
        """

    def score(self, policies: Sequence[Any], progress: Progress = ...) -> list[LogProbs]:
        """Return the log-probs of all rows under each policy, in eval mode and without gradient."""

    def crossed(self, pairs: Sequence[tuple[int, int]]) -> tuple[Source, list[int]]:
        """Return a source of rows with the prompt of the first and the response of the second of each pair.

        Each such row is there once; the list says which one is a pair's.
        """


@dataclass(frozen=True)
class LogProbs:
    """Log-probs of many rows by their parts, flat: those of row i are `values[offsets[i] : offsets[i + 1]]`, in nats."""

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
        """Return `(len(rows), width)` fp32 log-probs of each part, with zeros behind them."""
        found = torch.zeros(len(rows), width)
        for to, i in zip(found, rows, strict=True):
            piece = self.values[self.offsets[i] : self.offsets[i + 1]]
            to[: len(piece)] = torch.from_numpy(np.array(piece))
        return found


class Batches(Protocol[Batch]):
    """The batches of a run. Number k is asked for when step k + 1 begins, and not before."""

    def __len__(self) -> int: ...

    def __getitem__(self, k: int, /) -> Batch: ...


@dataclass
class Job:
    """One run of training: on which processes, to which folder, and who is told of it.

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
