"""A policy in training: its forward passes, distributed over the processes of a run, and its state between steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from harness.training.base import Policy, Source
from harness.training.sharding import equal_passes


@dataclass
class Training:
    """A policy, the processes that train it, and the other JSON state of the run.

    `kept` holds the values that change from step to step; checkpoints store it.
    """

    policy: Policy
    accelerator: Accelerator
    kept: dict[str, Any] = field(default_factory=lambda: {"examples": 0, "sequences_forwarded": 0})

    def share(self, source: Source, rows: Sequence[int], groups: Sequence[list[int]]) -> list[list[int]]:
        """Return this process's share of the forward passes of `rows`, cut into groups of positions."""
        ordered = sorted(groups, key=lambda group: max(source.tokens([rows[i]]) for i in group))
        mine = ordered[
            self.accelerator.process_index :: self.accelerator.num_processes
        ]  # balances the tokens per process
        return equal_passes(source.passes(rows, mine), self.policy, self.accelerator)

    @torch.no_grad()
    def of_rows(
        self,
        source: Source,
        rows: Sequence[int],
        make: Callable[[Sequence[int]], Tensor],
        groups: Sequence[list[int]] | None = None,
    ) -> Tensor:
        """Return `(len(rows),)` the values of `make(rows of one pass)` for all rows; each of `groups` shares a pass."""
        values = torch.zeros(len(rows), device=self.policy.device)
        for positions in self.share(source, rows, groups or [[i] for i in range(len(rows))]):
            # a sharded policy needs a pass from every process, even from one without rows
            made = make([rows[i] for i in positions] or rows[:1])
            values[positions] = made[: len(positions)]
        return self.accelerator.reduce(values, "sum")
