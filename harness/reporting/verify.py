"""Checks everything in a results folder: files, sizes, hashes, keys and rows, without trusting earlier checks."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.core.builds import find_build
from harness.core.errors import UserError, one_line
from harness.core.integrity import damages
from harness.core.record_files import (
    is_of_samples,
    read_failures,
    read_mapping,
    read_metrics,
    read_record,
    read_records,
    readable,
)
from harness.core.records import (
    JUDGE,
    MEASURE,
    SAMPLE,
    START,
    TRAIN,
    CellRecord,
    Environment,
    Failure,
    Judgement,
    JudgeRecord,
    Measure,
    PlanRecord,
    RunManifest,
    Sample,
    StepMetrics,
    TrainSummary,
    stage_folder,
)
from harness.core.store import DAMAGED, MANIFEST, is_of_key, read_json, read_manifest
from harness.evaluation.endpoint.cache import CACHE_FILE
from harness.reporting.judge_checks import FOLDER, read_check

STORE = "store"
ANEW = "delete {path} and run the experiment again with all seeds of its report, which makes it anew if it needs it"
REWRITTEN = "run the experiment again, which writes it anew"
REPLACED = "it is not used, and a run that needs it makes it anew"
MOVE = "move it away; its answers are asked for again"
KINDS = {SAMPLE: Sample, JUDGE: Judgement, MEASURE: Measure}  # the rows of each stage


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was written, what to do about it, and whether it is damage or only left over."""

    path: Path
    what: str
    remedy: str
    damage: bool = True

    def __str__(self) -> str:
        return one_line(f"{self.path}: {self.what}; {self.remedy.format(path=self.path)}")


def verify(results: Path) -> Iterator[Finding | None]:
    """Yield what is wrong in a folder of all results or in that of one experiment, and None for each artifact checked.

    What a process builds at the moment is left out. Raises `UserError` if the folder holds no results.
    """
    results = Path(results)
    experiments = [path for path in (results, *_folders(results)) if _is_experiment(path)]
    if not experiments and not (results / STORE).is_dir():
        raise UserError(f"no results in {results}; name the folder that holds experiments and {STORE}/")
    for kind in _folders(results / STORE):
        yield from _leftovers(kind)
        for path in _folders(kind):
            yield from _shared(path, kind.name)
    yield from _answers(results / STORE)
    for path in sorted((results / FOLDER).glob("*/*.json")):
        yield from _unreadable(path, "delete it, or run judge-check again", read_check, path)
    for experiment in experiments:
        yield from _experiment(experiment)


def _is_experiment(path: Path) -> bool:
    return (path / PlanRecord.FILE).is_file() or (path / "cells").is_dir()


def _folders(path: Path) -> list[Path]:
    """Return the folders in a folder that hold something complete, in order."""
    folders = (child for child in path.glob("*") if child.is_dir())
    return sorted(child for child in folders if not child.name.startswith(".") and child.suffix != ".partial")


def _leftovers(folder: Path) -> Iterator[Finding]:
    """Yield what interrupted builds and writes have left in a folder."""
    for path in sorted(folder.glob(".*.tmp-*")):
        artifact = path.with_name(path.name[1:].rpartition(".tmp-")[0])
        if not _is_built_now(artifact):
            yield Finding(path, "left by a build that was killed", "delete it", damage=False)
    for path in sorted(folder.glob(".*")):
        if path.is_file() and re.fullmatch(r"\..+\.[0-9a-f]{8}", path.name):  # see `harness.core.store.write_text`
            yield Finding(path, "left by a write that was killed", "delete it", damage=False)
    for path in sorted(folder.glob("*.partial")):
        if not _is_built_now(path.with_suffix("")):
            what = "the checkpoints of a build that was interrupted"
            yield Finding(path, what, "the next run goes on from there", damage=False)


def _is_built_now(path: Path) -> bool:
    build = find_build(path)
    return build is not None and build.running


def _shared(path: Path, kind: str) -> Iterator[Finding | None]:
    """Check an artifact that experiments share."""
    if _is_built_now(path):
        return
    manifest = yield from _artifact(path)
    if manifest and manifest["kind"] not in ("", kind):
        yield Finding(path, f"{MANIFEST} calls it {manifest['kind']!r}", ANEW)
    if manifest and not is_of_key(manifest, path.name):
        yield Finding(path, f"{MANIFEST} names the inputs of another key", ANEW)


def _artifact(path: Path) -> Iterator[Finding | None]:
    """Check an artifact's files; return its manifest, or None if something is wrong with them."""
    yield None
    try:
        manifest = read_manifest(path / MANIFEST)
    except DAMAGED as error:
        yield Finding(path, f"{MANIFEST} cannot be read ({error})", ANEW)
        return None
    wrong = [*damages(path, manifest["files"], manifest["sizes"])]
    if not manifest["files"]:
        wrong = [f"{MANIFEST} lists no files"]
    if wrong:
        yield Finding(path, "; ".join(wrong), ANEW)
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        name = str(file.relative_to(path))
        if name not in manifest["files"] and name != MANIFEST:
            yield Finding(file, f"{MANIFEST} does not list it", "delete it, or move it away", damage=False)
    return None if wrong else manifest


def _answers(store: Path) -> Iterator[Finding]:
    """Check the answers that were paid for."""
    file = store / CACHE_FILE
    if file.is_file():
        try:
            with sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True) as connection:
                said = connection.execute("PRAGMA quick_check").fetchone()[0]
        except sqlite3.Error as error:
            said = str(error)
        if said != "ok":
            yield Finding(file, f"the data base is damaged ({said})", MOVE)
    for file in sorted(store.glob("alpaca_eval-official/*.json")):
        yield from _unreadable(file, MOVE, readable, file, read_json)


def _experiment(folder: Path) -> Iterator[Finding | None]:
    """Check an experiment: its plan, its manifest and its cells."""
    yield from _leftovers(folder)
    for kind in (PlanRecord, RunManifest):
        if (folder / kind.FILE).is_file():
            yield from _unreadable(folder / kind.FILE, REWRITTEN, read_record, kind, folder)
    asked: dict[str, set[str]] = {}  # by the hash of the prompts that were sampled: the ids of all questions
    sampled: list[tuple[Path, str, set[str]]] = []
    for cell in _folders(folder / "cells"):
        yield from _leftovers(cell)
        manifests = {}
        for path in _folders(cell):
            if not _is_built_now(path):
                manifests[path.name] = yield from _artifact(path)
        yield from _cell(cell, manifests)
        yield from _outdated(cell, manifests)
        rows, findings = _rows(cell, manifests)
        yield from findings
        for name, ids in rows.items():
            prompts = manifests[name]["inputs"].get("prompts")
            if isinstance(prompts, str):
                sampled.append((cell / name, prompts, ids))
                asked.setdefault(prompts, set()).update(ids)
    for path, prompts, ids in sampled:
        if missing := len(asked[prompts] - ids):
            yield Finding(path, f"{missing} of {len(asked[prompts])} questions have no response", ANEW)


def _cell(cell: Path, manifests: Mapping[str, Mapping | None]) -> Iterator[Finding]:
    """Check what a cell's folder says of it and of its training."""
    if not (cell / CellRecord.FILE).is_file():
        yield Finding(cell, f"it has no {CellRecord.FILE}", REWRITTEN)
    else:
        yield from _unreadable(cell / CellRecord.FILE, REWRITTEN, _named, cell)
    if (cell / Failure.FILE).is_file():
        yield from _unreadable(cell / Failure.FILE, REWRITTEN, read_failures, cell)
    train = manifests.get(TRAIN)
    if not train:
        return
    if not is_of_key(train, cell.name):
        yield Finding(cell / TRAIN, f"{MANIFEST} names the inputs of another cell", ANEW)
    folder = cell / TRAIN
    anew = ANEW.format(path=folder)
    readers = {
        TrainSummary.FILE: (read_record, TrainSummary, folder),
        Environment.FILE: (read_record, Environment, folder),
        StepMetrics.FILE: (read_metrics, folder),
        START: (read_mapping, folder / START),
    }
    for name in readers.keys() & train["files"].keys():
        yield from _unreadable(folder / name, anew, *readers[name])


def _outdated(cell: Path, manifests: Mapping[str, Mapping | None]) -> Iterator[Finding]:
    """Yield the stages that were made of other weights or samples than those beside them, as the next run finds too."""
    weights = (manifests.get(TRAIN) or {}).get("files", {}).values()
    for name, manifest in manifests.items():
        stage, _, target = name.partition("-")
        if manifest is None:
            continue
        trained = manifest["inputs"].get("trained")
        if stage == SAMPLE and manifests.get(TRAIN) and trained is not None and trained not in weights:
            yield Finding(cell / name, "it is of another policy than the one beside it", REPLACED, damage=False)
        samples = manifests.get(stage_folder(SAMPLE, target.partition("@")[0]))
        if stage in (JUDGE, MEASURE) and samples and not is_of_samples(manifest, samples):
            yield Finding(cell / name, "it is of other samples than those beside it", REPLACED, damage=False)


def _named(cell: Path) -> None:
    if (key := read_record(CellRecord, cell).key) != cell.name:
        raise UserError(f"{cell / CellRecord.FILE}: it is the record of another cell, {key}")


def _rows(cell: Path, manifests: Mapping[str, Mapping | None]) -> tuple[dict[str, set[str]], list[Finding]]:
    """Check the rows of a cell's stages; return the ids that each sample has, and what is wrong.

    A question has one response and each judge one verdict on it; a measurement has one for each kept share.
    """
    ids: dict[str, set[str]] = {}
    findings: list[Finding] = []
    for name in sorted(manifests, key=lambda name: not name.startswith(SAMPLE)):  # samples first
        stage, _, target = name.partition("-")
        manifest = manifests[name]
        if stage not in KINDS or manifest is None:
            continue
        try:
            rows = read_records(KINDS[stage], cell / name)
            if stage == JUDGE:
                read_record(JudgeRecord, cell / name)
        except UserError as error:
            findings.append(Finding(cell / name, _reason(error, cell / name), ANEW))
            continue
        judged = {(getattr(row, "at", None), row.id) for row in rows}
        if stage == SAMPLE:
            ids[name] = {row.id for row in rows}
            continue
        samples = stage_folder(SAMPLE, target.partition("@")[0])
        if samples in ids and is_of_samples(manifest, manifests[samples] or {}):
            for at in {at for at, _ in judged}:
                missing = len(ids[samples] - {id for share, id in judged if share == at})
                if missing:
                    what = f"{missing} of {len(ids[samples])} responses have no row"
                    findings.append(Finding(cell / name, what, ANEW))
    return ids, findings


def _unreadable(path: Path, remedy: str, read: Callable, *arguments: object) -> Iterator[Finding]:
    """Yield a finding if `read(*arguments)` raises `UserError`."""
    try:
        read(*arguments)
    except UserError as error:
        yield Finding(path, _reason(error, path), remedy)


def _reason(error: UserError, path: Path) -> str:
    """Return a reader's message without the path before it and the remedy after it."""
    return str(error).removeprefix(f"{path}:").strip().partition(";")[0]
