"""Reads the files of one cell in a results folder. `status`, `show` and `export` read them only here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.core.errors import UserError
from harness.core.records import FAILED, Failure
from harness.core.store import MANIFEST, read_json, read_jsonl
from harness.evaluation.base import judging
from harness.reporting.results import one_line, settings_text

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
    def plan(self) -> Mapping:
        """The content of `plan.json`."""
        return _json(self.folder / "plan.json")

    @cached_property
    def manifest(self) -> Mapping:
        """The content of `manifest.json`: configuration, hashes and counts of the last run that computed something."""
        return _json(self.folder / "manifest.json")

    @cached_property
    def planned(self) -> list[CellFiles]:
        """The cells of the plan in order, each once, although a grid may name one setting twice."""
        return [CellFiles(self, cell) for cell in {cell["key"]: cell for cell in self.plan.get("cells", [])}.values()]

    @cached_property
    def cells(self) -> list[CellFiles]:
        """The cells of the plan, and those that earlier plans left."""
        keys = {cell.key for cell in self.planned}
        left = (_json(path) for path in sorted(self.folder.glob("cells/*/cell.json")))
        return [*self.planned, *(CellFiles(self, cell) for cell in left if cell["key"] not in keys)]

    def judges(self, task: str) -> list[str]:
        """The names of a task's judges; "" for a single judge."""
        return self.plan.get("judges", {}).get(task, [""])


@dataclass(frozen=True)
class CellFiles:
    """One cell; `record` is its entry in `cell.json` or in the plan. Missing files are read as None or empty."""

    experiment: ExperimentFiles
    record: Mapping

    @property
    def key(self) -> str:
        return self.record["key"]

    @property
    def task(self) -> str:
        """The task whose preferences it is trained on."""
        return self.record["trained_on"]

    @property
    def loss(self) -> str:
        return self.record["loss"]

    @property
    def settings(self) -> str:
        """The hyper-parameters as the leaderboard prints them."""
        return settings_text(self.record["settings"])

    @property
    def seed(self) -> int:
        return self.record["seed"]

    @property
    def label(self) -> str:
        """The cell as task/loss/settings/seed."""
        return f"{self.task}/{self.loss}/{self.settings or NO_SETTINGS}/{self.seed}"

    @property
    def folder(self) -> Path:
        return self.experiment.folder / "cells" / self.key

    @property
    def judgings(self) -> list[tuple[str, str]]:
        """Each task that the cell is evaluated on, with each of its judges."""
        return [(task, judge) for task in self.record["evaluated_on"] for judge in self.experiment.judges(task)]

    def artifact(self, stage: str) -> Mapping | None:
        """The manifest of a finished stage, such as "train" or "sample-hh"."""
        return _json(self.folder / stage / MANIFEST) or None

    @property
    def failure(self) -> Failure | None:
        """Why the cell failed, if it did."""
        written = _json(self.folder / FAILED)
        return Failure(**written) if written else None

    @property
    def summary(self) -> Mapping:
        """The budget that its training used."""
        return _json(self.folder / "train/summary.json")

    @property
    def environment(self) -> Mapping:
        """The code, versions and hardware that trained it."""
        return _json(self.folder / "train/environment.json")

    @property
    def start(self) -> Mapping:
        """The hash of the SFT policy that its training started from, by file name."""
        return _json(self.folder / "train/start.json")

    @property
    def metrics(self) -> list[dict]:
        """The logged rows of its training."""
        return _rows(self.folder / "train/metrics.jsonl")

    def samples(self, task: str) -> list[dict]:
        """Its responses to a task's test prompts."""
        return _rows(self.folder / f"sample-{task}/samples.jsonl")

    def judge(self, task: str, name: str) -> Mapping:
        """The record of the judge of its responses."""
        return _json(self.folder / judging(task, name) / "judge.json")

    def judgements(self, task: str, name: str) -> dict[str, dict]:
        """A judge's verdicts on its responses, by question."""
        return {row["id"]: row for row in _rows(self.folder / judging(task, name) / "judgements.jsonl")}


def experiments_in(results: Path) -> Iterator[ExperimentFiles]:
    """Yield the experiments in a folder of all results, by name."""
    for folder in sorted(path for path in Path(results).glob("*") if path.is_dir()):
        if (folder / "plan.json").is_file() or (folder / "cells").is_dir():
            yield ExperimentFiles(folder)


def _json(path: Path) -> dict:
    return _read(path, read_json) if path.is_file() else {}


def _rows(path: Path) -> list[dict]:
    return _read(path, read_jsonl) if path.is_file() else []


def _read(path: Path, reader: Callable):
    try:
        return reader(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({one_line(error)}); delete the folder {path.parent} and run again"
        ) from None
