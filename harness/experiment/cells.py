"""What an experiment is cut into: tasks with their data, and cells, each of which is one policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.backbones.language_model.preferences import Generation
from harness.backbones.language_model.tokens import PreparedTask
from harness.tasks import Task


@dataclass(frozen=True, eq=False)  # told apart by identity: a plan makes each cell once
class Cell:
    """One policy: a task, a loss with its settings, a seed. The SFT policy is the cell without a loss."""

    key: str
    task: str
    loss: str
    settings: Mapping[str, object]
    seed: int
    evaluated_on: tuple[str, ...]
    inputs: Mapping[str, object]

    @property
    def label(self) -> str:
        """What the cell is, in words for a person."""
        settings = " ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.settings.items())
        return " ".join(part for part in (self.task, self.loss, settings, f"seed={self.seed}") if part)


@dataclass(frozen=True)
class PlannedTask:
    """A task of the experiment with its data, tokenised; `hash` is that of the data as they were read.

    `generation` is how a task makes preferences that it does not have.
    """

    name: str
    task: Task
    prepared: PreparedTask
    hash: str
    generation: Generation | None = None

    @property
    def paired(self) -> bool:
        """Whether its training data are, or will be, pairs."""
        return self.generation.paired if self.generation else self.prepared.splits["train"].paired
