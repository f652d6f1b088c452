"""Artifacts on disk: folders that are either complete or absent, with a manifest that says what they hold.

An artifact is built in a temporary folder beside its place and renamed into it, under a lock, so that a crash or a
second process leaves nothing half-written. Its key is a hash of everything that determines its content; what is
already there is never built again.
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

from filelock import FileLock

from harness.core.hashing import hash_file, hash_value

MANIFEST = "artifact.json"
KEY_LENGTH = 16  # hex digits: 64 bits, no collision to fear among thousands of artifacts


@dataclass(frozen=True)
class Artifact:
    """A complete folder. `manifest` holds `kind`, `inputs`, `files` (sha256 of each), `seconds` and `created`."""

    path: Path

    @cached_property
    def manifest(self) -> dict:
        return read_json(self.path / MANIFEST)


def key_of(inputs: Mapping) -> str:
    """Return the key of an artifact with these inputs (a JSON-serialisable mapping)."""
    return hash_value(inputs)[:KEY_LENGTH]


def find_artifact(path: Path, inputs: Mapping | None = None) -> Artifact | None:
    """Return the artifact at `path` if it is complete (and, where `inputs` are given, was made of them)."""
    artifact = Artifact(Path(path))
    if not (artifact.path / MANIFEST).is_file():
        return None
    if inputs is not None and artifact.manifest["inputs"] != json.loads(json.dumps(inputs)):
        return None
    return artifact


def partial_folder(path: Path) -> Path:
    """Return where the build of the artifact at `path` keeps what it resumes from; it goes when the artifact is there."""
    return Path(path).with_name(f"{Path(path).name}.partial")


def build_artifact(
    path: Path,
    kind: str,
    inputs: Mapping,
    build: Callable[[Path], None],
    accept: Callable[[Artifact], bool] = lambda found: True,
) -> Artifact:
    """Return the artifact at `path`, calling `build(folder)` to write its files if it is not there yet.

    A folder made of other inputs, or one that `accept` rejects, is replaced when the new one is complete. Two processes
    that want the same artifact build it once: the second waits for the first.
    """
    path = Path(path)
    found = find_artifact(path, inputs)
    if found and accept(found):
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.parent / f".{path.name}.lock"
    with FileLock(lock):
        found = find_artifact(path, inputs)
        if found and accept(found):
            return found
        for stale in path.parent.glob(f".{path.name}.tmp-*"):  # what a killed process left: ours is the only lock
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
    """The artifacts that all experiments share, at `root/<kind>/<key>`."""

    def __init__(self, root: Path):
        self.root = Path(root)

    def path(self, kind: str, inputs: Mapping) -> Path:
        """Return where the artifact with these inputs is or would be."""
        return self.root / kind / key_of(inputs)

    def artifact(self, kind: str, inputs: Mapping, build: Callable[[Path], None]) -> Artifact:
        """Return the artifact, building it on first use (see `build_artifact`)."""
        return build_artifact(self.path(kind, inputs), kind, inputs, build)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: readers see the old content or the new, never a part."""
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


def read_json(path: Path):
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: Iterable[Mapping]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict]:
    """Read one JSON object a line."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line]
