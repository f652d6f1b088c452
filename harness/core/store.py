"""Artifacts on disk: folders that are either complete or absent, with a manifest of their content.

An artifact is built under a lock in a temporary folder beside its path and then renamed, so that a crash or a second
process leaves nothing half-written. Its key is a hash of everything that determines its content; an artifact that
already exists is not built again.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from harness.core.hashing import hash_file, hash_value

MANIFEST = "artifact.json"
KEY_LENGTH = 16  # hex digits: 64 bits, so collisions among thousands of artifacts are negligible


@dataclass(frozen=True)
class Artifact:
    """A complete folder. `manifest` holds `kind`, `inputs`, `files` (sha256 of each), `seconds` and `created`."""

    path: Path

    @cached_property
    def manifest(self) -> dict:
        return read_json(self.path / MANIFEST)


def key_of(inputs: Mapping) -> str:
    """Return the key of the artifact with these inputs (a JSON-serialisable mapping)."""
    return hash_value(inputs)[:KEY_LENGTH]


def find_artifact(path: Path, inputs: Mapping | None = None) -> Artifact | None:
    """Return the artifact at `path` if it is complete and, with `inputs`, was built from them; else None."""
    artifact = Artifact(Path(path))
    if not (artifact.path / MANIFEST).is_file():
        return None
    if inputs is not None and artifact.manifest["inputs"] != json.loads(json.dumps(inputs)):
        return None
    return artifact


def partial_folder(path: Path) -> Path:
    """Return the folder where an interrupted build of `path` keeps its checkpoints; removed when the build succeeds."""
    return Path(path).with_name(f"{Path(path).name}.partial")


def build_artifact(
    path: Path,
    kind: str,
    inputs: Mapping,
    build: Callable[[Path], None],
    accept: Callable[[Artifact], bool] = lambda artifact: True,
) -> Artifact:
    """Return the artifact at `path`, calling `build(folder)` to write its files if it does not exist yet.

    An artifact built from other inputs, or one that `accept` rejects, is replaced once the new one is complete. Two
    processes that need the same artifact build it once: the second waits for the first.
    """
    path = Path(path)
    existing = find_artifact(path, inputs)
    if existing and accept(existing):
        return existing
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.parent / f".{path.name}.lock"
    with FileLock(lock):
        existing = find_artifact(path, inputs)
        if existing and accept(existing):
            return existing
        for stale in path.parent.glob(f".{path.name}.tmp-*"):  # left by a killed process, as this one holds the lock
            shutil.rmtree(stale, ignore_errors=True)
        folder = path.parent / f".{path.name}.tmp-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        try:
            started = time.monotonic()
            build(folder)
            files = {str(f.relative_to(folder)): hash_file(f) for f in sorted(folder.rglob("*")) if f.is_file()}
            manifest = {
                "kind": kind,
                "inputs": inputs,
                "files": files,
                "seconds": round(time.monotonic() - started, 3),
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            write_json(folder / MANIFEST, manifest)
            if path.exists():
                shutil.rmtree(path)
            os.replace(folder, path)
            shutil.rmtree(partial_folder(path), ignore_errors=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return Artifact(path)


class Store:
    """The artifacts shared by all experiments, at `root/<kind>/<key>`."""

    def __init__(self, root: Path):
        self.root = Path(root)

    def path(self, kind: str, inputs: Mapping) -> Path:
        """Return the path of the artifact with these inputs, whether or not it exists."""
        return self.root / kind / key_of(inputs)

    def artifact(self, kind: str, inputs: Mapping, build: Callable[[Path], None]) -> Artifact:
        """Return the artifact, building it on first use (see `build_artifact`)."""
        return build_artifact(self.path(kind, inputs), kind, inputs, build)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: readers see either the old content or the new."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: Iterable[Mapping]) -> None:
    """Write one JSON object per line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict]:
    """Read a file with one JSON object per line."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line]
