"""The progress of an experiment: each stage of each cell, what is under way, what failed and why, how long is left."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.builds import Build, find_build
from harness.core.errors import UserError, one_line
from harness.core.integrity import wrong_size
from harness.core.record_files import is_of_samples
from harness.core.records import JUDGE, MEASURE, SAMPLE, SFT, TRAIN, Failure, stage_folder
from harness.core.store import DAMAGED, MANIFEST, is_of_key, read_manifest
from harness.reporting.cell_files import CellFiles, ExperimentFiles

DONE, UNDER_WAY, FAILED, TO_DO = "done", "under way", "failed", "to do"
STAGES = ("train", "sample", "measure", "judge")


@dataclass(frozen=True)
class StageStatus:
    """One stage of a cell: `name` is its folder ("judge-hh@gpt"), `stage` its kind ("judge").

    `state` is "done", "under way", "failed" or "to do"; `seconds` is how long it took, if it is done. `build` is set
    while it is being built and after an interrupted build. `damage` says what is wrong with the files of one that was
    done; it is to do again. Files are not read for that, so a damage that leaves their size is not seen.
    """

    name: str
    state: str
    seconds: float | None = None
    build: Build | None = None
    damage: str = ""

    @property
    def stage(self) -> str:
        return self.name.partition("-")[0]


@dataclass(frozen=True)
class CellStatus:
    """One cell with its stages in order, and which of them failed and why."""

    cell: CellFiles
    stages: tuple[StageStatus, ...]
    failures: tuple[Failure, ...]

    @property
    def state(self) -> str:
        """The state of the whole cell: under way or failed if a stage is, in this order; done if all stages are."""
        states = [stage.state for stage in self.stages]
        if UNDER_WAY in states:
            return UNDER_WAY
        if self.failures:
            return FAILED
        return DONE if set(states) == {DONE} else TO_DO


@dataclass(frozen=True)
class SharedStatus:
    """The SFT policy of a task, which its cells share; `state` is "" if the plan does not name it."""

    task: str
    state: str
    build: Build | None = None


@dataclass(frozen=True)
class Left:
    """What is left of one stage: `count` runs, which take `seconds` by the median of the `measured` runs that are done.

    `seconds` is None if none is done yet.
    """

    name: str
    task: str
    count: int
    measured: int
    seconds: float | None


@dataclass(frozen=True)
class Status:
    """How far an experiment is; it has no cells while a run of it has not yet written its plan.

    `in_store` is what is built right now of the artifacts that experiments share, by kind and key.
    """

    experiment: str
    in_store: Mapping[str, Build]
    cells: tuple[CellStatus, ...] = ()
    shared: tuple[SharedStatus, ...] = ()
    left: tuple[Left, ...] = ()

    @property
    def seconds_left(self) -> float | None:
        """The seconds left with one process; None if a stage that is left was never measured."""
        known = [left.seconds for left in self.left]
        return None if None in known else sum(known)

    def count(self, state: str) -> int:
        """The number of cells in a state."""
        return sum(cell.state == state for cell in self.cells)


def experiment_status(folder: Path) -> Status:
    """Return how far the experiment in a results folder is.

    Raises `UserError` where there is no plan, and no run that could be about to write it.
    """
    files = ExperimentFiles(Path(folder))
    in_store = builds_in_store(files.store)
    if not files.plan and in_store:  # judges are made before the plan is written
        return Status(files.name, in_store)
    if not files.plan:
        raise UserError(
            f"no results in {folder}: it has no plan.json, which a run writes when its judges are made; "
            "run it first: python -m harness run EXPERIMENT.yaml"
        )
    cells = tuple(_cell(cell) for cell in files.planned)
    shared = tuple(_shared(files, task) for task in dict.fromkeys(cell.cell.task for cell in cells))
    waiting = {status.cell.task for status in cells if status.state != DONE}
    first = [
        Left(SFT, one.task, 1, 0, None) for one in shared if one.state in (TO_DO, UNDER_WAY) and one.task in waiting
    ]
    return Status(files.plan.experiment, in_store, cells, shared, (*first, *_left(cells)))


def _cell(cell: CellFiles) -> CellStatus:
    failures = tuple(cell.failures)
    decoding, measured = cell.experiment.plan.decoding, _measured(cell)
    names = [TRAIN]
    for task in cell.record.evaluated_on:
        names += [stage_folder(SAMPLE, task), *([stage_folder(MEASURE, task)] if task in measured else [])]
        names += [stage_folder(JUDGE, task, judge) for judge in cell.experiment.judges(task)]
    return CellStatus(cell, tuple(_stage(cell, name, decoding, failures) for name in names), failures)


def _measured(cell: CellFiles) -> set[str]:
    """Return the tasks with a known reward, by which their policies are measured."""
    tasks = cell.experiment.manifest.get("config", {}).get("tasks", {})
    known = {name for name, options in tasks.items() if options.get("generate")}
    return known | {path.name.partition("-")[2] for path in cell.folder.glob("measure-*")}


def _stage(cell: CellFiles, name: str, decoding: dict, failures: Sequence[Failure]) -> StageStatus:
    build = find_build(cell.folder / name)
    if build and build.running:
        return StageStatus(name, UNDER_WAY, build=build)
    artifact, damage = _stored(cell.folder / name)
    if artifact and name == TRAIN and not is_of_key(artifact, cell.key):
        artifact, damage = None, f"{MANIFEST} names the inputs of another cell"
    if artifact and _is_current(cell, name, artifact, decoding):
        return StageStatus(name, DONE, artifact["seconds"])
    if name in {failure.where for failure in failures}:
        return StageStatus(name, FAILED, build=build, damage=damage)
    return StageStatus(name, TO_DO, build=build, damage=damage)


def _stored(path: Path) -> tuple[dict | None, str]:
    """Return an artifact's manifest, or None and what is wrong with it; None and "" if there is none."""
    if not (path / MANIFEST).is_file():
        return None, ""
    try:
        manifest = read_manifest(path / MANIFEST)
    except DAMAGED as error:
        return None, f"{MANIFEST} cannot be read ({one_line(error)})"
    damage = wrong_size(path, manifest["sizes"])
    return (None, damage) if damage else (manifest, "")


def _is_current(cell: CellFiles, name: str, artifact: Mapping, decoding: Mapping) -> bool:
    """Whether a stored artifact is what the plan asks for: samples with its decoding, judgements of those samples."""
    stage, _, target = name.partition("-")
    if stage == SAMPLE:
        return artifact["inputs"].get("decoding") == decoding
    if stage in (JUDGE, MEASURE):
        samples, _ = _stored(cell.folder / stage_folder(SAMPLE, target.partition("@")[0]))
        return samples is not None and is_of_samples(artifact, samples)
    return True


def _shared(files: ExperimentFiles, task: str) -> SharedStatus:
    """Return the state of a task's SFT policy."""
    key = files.plan.starts.get(task)
    if key is None:  # the plan is of an earlier version
        return SharedStatus(task, "")
    path = files.store / SFT / key
    build = find_build(path)
    state = UNDER_WAY if build and build.running else DONE if _stored(path)[0] else TO_DO
    return SharedStatus(task, state, build)


def builds_in_store(store: Path) -> dict[str, Build]:
    """Return the builds of shared artifacts that are under way, by kind and key."""
    builds = {}
    for lock in sorted(Path(store).glob("*/.*.lock")):
        path = lock.with_name(lock.name[1:].removesuffix(".lock"))
        build = find_build(path)
        if build and build.running and not (path / MANIFEST).is_file():
            builds[f"{path.parent.name} {path.name}"] = build
    return builds


def _left(cells: Sequence[CellStatus]) -> list[Left]:
    """Return what is left of each stage of each training task, in the order of the stages."""
    by_stage: dict[tuple[str, str], list[StageStatus]] = {}
    for status in cells:
        for stage in status.stages:
            of_kind = by_stage.setdefault((status.cell.task, stage.name), [])
            # the SFT row has nothing to train: its moment is not what a training takes
            if not (status.cell.loss == SFT and stage.name == TRAIN):
                of_kind.append(stage)
    return [_stage_left(task, name, stages) for (task, name), stages in by_stage.items() if _open(stages)]


def _open(stages: Sequence[StageStatus]) -> list[StageStatus]:
    return [stage for stage in stages if stage.state != DONE]


def _stage_left(task: str, name: str, stages: Sequence[StageStatus]) -> Left:
    took = [stage.seconds for stage in stages if stage.state == DONE]
    if not took:
        return Left(name, task, len(_open(stages)), 0, None)
    each = statistics.median(took)
    spent = [stage.build.seconds if stage.state == UNDER_WAY else 0.0 for stage in _open(stages)]
    return Left(name, task, len(spent), len(took), sum(max(0.0, each - seconds) for seconds in spent))
