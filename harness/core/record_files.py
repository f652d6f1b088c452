"""Records on disk: written with all their fields, and checked with clear errors when read.

On reading, a missing field takes its default, and a field that the record does not have is ignored. A file of an
artifact must have the hash that it was written with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from harness.core.errors import UserError, one_line
from harness.core.from_json import from_json
from harness.core.integrity import damage_of
from harness.core.records import DevMetrics, Failure, Record, Sample, StepMetrics, TrainMetrics
from harness.core.secrets import all_masked
from harness.core.store import (
    DAMAGED,
    MANIFEST,
    is_of_key,
    read_json,
    read_jsonl,
    read_manifest,
    write_json,
    write_jsonl,
)

R = TypeVar("R", bound=Record)
T = TypeVar("T")

REMEDY = "run the experiment again with all seeds of its report, which makes it anew"


def write_record(folder: Path, record: Record) -> None:
    """Write one record to its file in a folder; secrets of the environment are masked."""
    write_json(folder / record.FILE, all_masked(asdict(record)))


def write_records(folder: Path, kind: type[R], records: Iterable[R]) -> None:
    """Write records of one kind as the rows of their file in a folder."""
    write_jsonl(folder / kind.FILE, map(asdict, records))


def read_record(kind: type[R], folder: Path) -> R:
    """Read the record of this kind in a folder. Raises `UserError` for a damaged file, a missing or mistyped field."""
    path = folder / kind.FILE
    return _unchanged(path, _of_file(path, "", kind, readable(path, read_json)))


def read_records(kind: type[R], folder: Path) -> list[R]:
    """Read the rows of this kind in a folder; raises like `read_record`, and if a row stands there twice."""
    path = folder / kind.FILE
    rows = [_of_file(path, f" row {n}:", kind, row) for n, row in enumerate(readable(path, read_jsonl), start=1)]
    seen = set()
    for n, row in enumerate(rows if kind.IDENTITY else (), start=1):
        if (identity := tuple(getattr(row, name) for name in kind.IDENTITY)) in seen:
            raise UserError(f"{path}: row {n}: it stands there twice; {REMEDY}")
        seen.add(identity)
    return _unchanged(path, rows)


def read_metrics(folder: Path) -> list[StepMetrics]:
    """Read the metrics of a training run, both splits; empty if nothing was trained."""
    path = folder / StepMetrics.FILE
    rows = readable(path, read_jsonl) if path.is_file() else []

    def kind(row: object) -> type[StepMetrics]:
        return DevMetrics if isinstance(row, dict) and row.get("split") == "dev" else TrainMetrics

    return _unchanged(path, [_of_file(path, f" row {n}:", kind(row), row) for n, row in enumerate(rows, start=1)])


def read_mapping(path: Path) -> dict[str, str]:
    """Read a JSON file that maps text to text; empty if there is none. Raises like `read_record`."""
    if not path.is_file():
        return {}
    return _unchanged(path, _of_file(path, "", Mapping[str, str], readable(path, read_json)))


def read_failures(folder: Path) -> list[Failure]:
    """Read which stages of a cell failed, in order; empty if none did."""
    return read_records(Failure, folder) if (folder / Failure.FILE).is_file() else []


def readable(path: Path, reader: Callable[[Path], T]) -> T:
    """Return `reader(path)`; raises `UserError` that names the file if it is damaged."""
    try:
        return reader(path)
    except DAMAGED as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); {REMEDY}") from None


def manifest_of(folder: Path) -> dict | None:
    """Return an artifact's manifest, or None if there is no artifact; raises `UserError` if it is damaged."""
    return readable(folder / MANIFEST, read_manifest) if (folder / MANIFEST).is_file() else None


def check_key(folder: Path, manifest: Mapping, key: str) -> None:
    """Raise `UserError` if an artifact, given by its folder and manifest, is not that of the cell with this key."""
    if not is_of_key(manifest, key):
        raise UserError(f"{folder}: {MANIFEST} names the inputs of another cell; {REMEDY}")


def is_of_samples(made: Mapping, samples: Mapping) -> bool:
    """Whether judgements or measurements were made of these samples; both are given by their manifests."""
    digest = samples["files"].get(Sample.FILE)
    return digest is not None and made["inputs"].get("samples") == digest


def _unchanged(path: Path, content: T) -> T:
    """Return what was read from a file; raises `UserError` if an artifact lists the file with another hash."""
    if manifest := manifest_of(path.parent):
        listed = {name: digest for name, digest in manifest["files"].items() if name == path.name}
        if damage := damage_of(path.parent, listed):
            raise UserError(f"{path.parent}: {damage}; {REMEDY}")
    return content


def _of_file(path: Path, row: str, kind: Any, value: object) -> Any:
    try:
        return from_json(kind, value)
    except (ValueError, RecursionError) as error:  # RecursionError: a nested value that cannot be shown
        raise UserError(f"{path}:{row} {error}; another version wrote it, run it again") from None
