"""A stage: one step in the making of a cell, as a value. `harness.run.cell` has the list of them."""

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
    """What a stage is carried out for: a split of the training data, or questions of a task with one of its judges.

    `task` is "" where the stage concerns the cell's training; `judge` is the name of a judge in a panel, "" where
    there is one judge or none is meant.
    """

    task: str = ""
    split: str = ""
    judge: str = ""

    @property
    def words(self) -> str:
        """The target in words for a person."""
        task = f"{self.task}@{self.judge}" if self.judge else self.task
        return " ".join(filter(None, (task, "" if self.split == TEST else self.split)))


@dataclass(frozen=True)
class Stage:
    """A stage: its name, what it is carried out for in a cell, and how.

    - `targets(plan, cell, splits)`: for which targets, in order, given the splits of questions that are asked for.
    - `make(worker, cell, target, progress)`: make the stage's artifact, unless it is there. Called again it does
      nothing; interrupted it goes on where it was.
    - `shared`: what it makes serves all cells of a task, so that its failure fails each of them.
    - `alone`: its failure stops no other stage of the cell.
    """

    name: str
    targets: Callable[[Plan, Cell, Sequence[str]], list[Target]]
    make: Callable[[Worker, Cell, Target, Progress], Artifact | None]
    shared: bool = False
    alone: bool = False


def for_the_cell(plan: Plan, cell: Cell, splits: Sequence[str]) -> list[Target]:
    """The targets of a stage that a cell has once."""
    return [Target()]


def for_each_split_of_training(plan: Plan, cell: Cell, splits: Sequence[str]) -> list[Target]:
    """The targets of a stage that is carried out for each split of the training data."""
    return [Target(split=split) for split in plan.tasks[cell.task].prepared.splits]


def for_each_evaluation(plan: Plan, cell: Cell, splits: Sequence[str]) -> list[Target]:
    """The targets of a stage that is carried out on the questions of each task that the cell is evaluated on."""
    return [
        Target(task, split)
        for task in cell.evaluated_on
        for split in splits
        if plan.tasks[task].prepared.questions[split]
    ]
