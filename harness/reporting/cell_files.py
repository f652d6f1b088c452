"""Reads the files of one cell in a results folder. `status`, `show` and `export` read them only here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from harness.core.errors import UserError
from harness.core.record_files import manifest_of, read_failures, read_mapping, read_metrics, read_record, read_records
from harness.core.records import (
    JUDGE,
    SAMPLE,
    START,
    TRAIN,
    CellRecord,
    Environment,
    Failure,
    Judgement,
    JudgeRecord,
    PlanRecord,
    Record,
    RunManifest,
    Sample,
    StepMetrics,
    TrainSummary,
    cell_folder,
    settings_text,
    stage_folder,
)

R = TypeVar("R", bound=Record)
NO_SETTINGS = "-"  # as the leaderboard shows a loss without hyper-parameters


@dataclass(frozen=True)
class ExperimentFiles:
    """The folder of an experiment, below the folder of all results. Missing files are read as empty."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def store(self) -> Path:
        """The folder of the artifacts that experiments share."""
        return self.folder.parent / "store"

    @cached_property
    def plan(self) -> PlanRecord | None:
        """What the experiment asks for."""
        return _record(PlanRecord, self.folder)

    @cached_property
    def manifest(self) -> Mapping:
        """The fields of `RunManifest`; empty if there is none."""
        return _fields(RunManifest, self.folder)

    @cached_property
    def planned(self) -> list[CellFiles]:
        """The cells of the plan, in its order; a grid may name one setting twice."""
        cells = self.plan.cells if self.plan else ()
        return [CellFiles(self, cell) for cell in {cell.key: cell for cell in cells}.values()]

    @cached_property
    def cells(self) -> list[CellFiles]:
        """The cells of the plan, and those that earlier plans left; one whose record is damaged is left out."""
        cells = {cell.key: cell for cell in self.planned}
        for path in sorted(self.folder.glob(f"cells/*/{CellRecord.FILE}")):
            if path.parent.name not in cells:
                try:
                    cells[path.parent.name] = CellFiles(self, read_record(CellRecord, path.parent))
                except UserError as error:
                    warnings.warn(f"a cell is left out: {error}", stacklevel=2)
        return list(cells.values())

    def judges(self, task: str) -> list[str]:
        """The names of a task's judges: "" where there is one."""
        return self.plan.judges.get(task, [""]) if self.plan else [""]


@dataclass(frozen=True)
class CellFiles:
    """One cell: `record` is what its own file or the plan says of it. What is not there is None or empty."""

    experiment: ExperimentFiles
    record: CellRecord

    @property
    def key(self) -> str:
        return self.record.key

    @property
    def task(self) -> str:
        """The task whose preferences it is trained on."""
        return self.record.trained_on

    @property
    def loss(self) -> str:
        return self.record.loss

    @property
    def settings(self) -> str:
        """The hyper-parameters as the leaderboard prints them."""
        return settings_text(self.record.settings)

    @property
    def seed(self) -> int:
        return self.record.seed

    @property
    def label(self) -> str:
        """The cell as task/loss/settings/seed."""
        return f"{self.task}/{self.loss}/{self.settings or NO_SETTINGS}/{self.seed}"

    @property
    def folder(self) -> Path:
        return cell_folder(self.experiment.folder, self.key)

    @property
    def judgings(self) -> list[tuple[str, str]]:
        """Each task that the cell is evaluated on, with each of its judges."""
        return [(task, judge) for task in self.record.evaluated_on for judge in self.experiment.judges(task)]

    def artifact(self, stage: str) -> Mapping | None:
        """The manifest of a finished stage, such as "train" or "sample-hh"; raises `UserError` if it is damaged."""
        return manifest_of(self.folder / stage)

    @property
    def failures(self) -> list[Failure]:
        """The stages of the cell that failed, and why."""
        return read_failures(self.folder)

    @property
    def summary(self) -> TrainSummary | None:
        """What its training took."""
        return _record(TrainSummary, self.folder / TRAIN)

    @property
    def environment(self) -> Mapping:
        """Code, versions and hardware that trained it."""
        return _fields(Environment, self.folder / TRAIN)

    @property
    def start(self) -> Mapping:
        """The hash of the SFT policy that its training started from, by file name."""
        return read_mapping(self.folder / TRAIN / START)

    @property
    def metrics(self) -> list[StepMetrics]:
        """The steps of its training."""
        return read_metrics(self.folder / TRAIN)

    def samples(self, task: str) -> list[Sample]:
        """Its responses to a task's test prompts."""
        return _records(Sample, self.folder / stage_folder(SAMPLE, task))

    def judge(self, task: str, name: str) -> JudgeRecord | None:
        """Who judged its responses."""
        return _record(JudgeRecord, self.folder / stage_folder(JUDGE, task, name))

    def judgements(self, task: str, name: str) -> dict[str, Judgement]:
        """A judge's verdicts on its responses, by question."""
        return {row.id: row for row in _records(Judgement, self.folder / stage_folder(JUDGE, task, name))}


def experiments_in(results: Path) -> Iterator[ExperimentFiles]:
    """Yield the experiments in a folder of all results, by name."""
    for folder in sorted(path for path in Path(results).glob("*") if path.is_dir()):
        if (folder / PlanRecord.FILE).is_file() or (folder / "cells").is_dir():
            yield ExperimentFiles(folder)


def _record(kind: type[R], folder: Path) -> R | None:
    return read_record(kind, folder) if (folder / kind.FILE).is_file() else None


def _fields(kind: type[Record], folder: Path) -> dict:
    record = _record(kind, folder)
    return asdict(record) if record else {}


def _records(kind: type[R], folder: Path) -> list[R]:
    return read_records(kind, folder) if (folder / kind.FILE).is_file() else []
