"""A stage: one step of making a cell, described by a value. `harness.run.cell` lists the stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.core.records import TEST
from harness.core.store import Artifact
from harness.experiment.cells import Cell
from harness.experiment.plan import Plan
from harness.run.worker import Worker
from harness.training.base import Progress


@dataclass(frozen=True)
class Target:
    """What a stage works on: a split of the training data, or a task's questions of one split with one of its judges.

    `task` is "" for a stage of the cell's training; `judge` is the name of a judge in a panel, "" for a single judge
    or none.
    """

    task: str = ""
    split: str = ""
    judge: str = ""

    @property
    def words(self) -> str:
        """A readable name of the target."""
        task = f"{self.task}@{self.judge}" if self.judge else self.task
        return " ".join(filter(None, (task, "" if self.split == TEST else self.split)))


@dataclass(frozen=True)
class Stage:
    """A stage: its name, its targets in a cell, and how it is run.

    - `targets(plan, cell, splits)`: its targets in order, for the requested splits of questions.
    - `make(worker, cell, target, progress)`: makes the stage's artifact unless it exists. Called again it does
      nothing; after an interruption it continues where it stopped.
    - `shared`: its result serves all cells of a task, so its failure fails each of them.
    - `alone`: its failure stops no other stage of the cell.
    """

    name: str
    targets: Callable[[Plan, Cell, Sequence[str]], list[Target]]
    make: Callable[[Worker, Cell, Target, Progress], Artifact | None]
    shared: bool = False
    alone: bool = False


def for_the_cell(plan: Plan, cell: Cell, splits: Sequence[str]) -> list[Target]:
    """Return the single target of a stage that a cell has once."""
    return [Target()]


def for_each_split_of_training(plan: Plan, cell: Cell, splits: Sequence[str]) -> list[Target]:
    """Return one target for each split of the training data."""
    return [Target(split=split) for split in plan.tasks[cell.task].prepared.splits]


def for_each_evaluation(plan: Plan, cell: Cell, splits: Sequence[str]) -> list[Target]:
    """Return one target for each task that the cell is evaluated on and each of its `splits` that has questions."""
    return [
        Target(task, split)
        for task in cell.evaluated_on
        for split in splits
        if plan.tasks[task].prepared.questions[split]
    ]
