"""Artifacts on disk: folders that are either complete or absent, with a manifest of their content.

An artifact is built under a lock in a temporary folder beside its path and then renamed, so that a crash or a second
process leaves nothing half-written. Its key is a hash of everything that determines its content; an artifact that
already exists and is undamaged is not built again.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from harness.core.errors import one_line
from harness.core.from_json import from_json
from harness.core.hashing import hash_file, hash_value
from harness.core.integrity import damage_of, remember_written

MANIFEST = "artifact.json"
KEY_LENGTH = 16  # hex digits: 64 bits, so collisions among thousands of artifacts are negligible

# What reading a damaged JSON file raises. ValueError: broken JSON or UTF-8, a missing field or a wrong type;
# RecursionError: nested too deeply; OverflowError: an integer beyond any float.
DAMAGED = (OSError, ValueError, RecursionError, OverflowError)

# What flushing a file raises on file systems that have no such operation. Any other error says that the file is lost.
CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)


@dataclass(frozen=True)
class Manifest:
    """The content of `artifact.json`.

    `inputs` determine the content, `files` has the sha256 of each file and `sizes` their bytes; `seconds` is how long
    the build took, and `created` when it ended (UTC).
    """

    inputs: Mapping[str, object]
    files: Mapping[str, str]
    sizes: Mapping[str, int] = field(default_factory=dict)
    kind: str = ""
    seconds: float = 0.0
    created: str = ""


@dataclass(frozen=True)
class Artifact:
    """A complete folder."""

    path: Path

    @cached_property
    def manifest(self) -> dict:
        """The fields of `Manifest`; raises `ValueError` or another of `DAMAGED` if they cannot be read."""
        return read_manifest(self.path / MANIFEST)

    @property
    def damage(self) -> str:
        """What is wrong with its files, in words; "" if they are what was written."""
        try:
            files = self.manifest["files"]
            return one_line(damage_of(self.path, files)) if files else f"{MANIFEST} lists no files"
        except DAMAGED as error:
            return f"{MANIFEST} cannot be read ({one_line(error)})"


def key_of(inputs: Mapping) -> str:
    """Return the key of the artifact with these inputs (a JSON-serialisable mapping)."""
    return hash_value(inputs)[:KEY_LENGTH]


def is_of_key(manifest: Mapping, key: str) -> bool:
    """Whether the inputs that a manifest names are those of a key."""
    try:
        return key_of(manifest["inputs"]) == key
    except ValueError:  # a number that no key is made of
        return False


def find_artifact(path: Path, inputs: Mapping | None = None) -> Artifact | None:
    """Return the artifact at `path` if it is complete, undamaged and, with `inputs`, was built from them; else None.

    Files are hashed only if their size or times have changed (see `harness.core.integrity`).
    """
    artifact = Artifact(Path(path))
    if not (artifact.path / MANIFEST).is_file() or artifact.damage:
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

    An artifact built from other inputs, or one that `accept` rejects, is replaced once the new one is complete; so is a
    damaged one, with a warning. Two processes that need the same artifact build it once: the second waits for the
    first.
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
        if path.is_dir() and (damage := Artifact(path).damage):
            warnings.warn(f"{one_line(path)} is damaged: {damage}; it is made again", stacklevel=2)
        for stale in path.parent.glob(f".{path.name}.tmp-*"):  # left by a killed process, as this one holds the lock
            _remove(stale)
        folder, old = (path.parent / f".{path.name}.tmp-{uuid.uuid4().hex[:8]}" for _ in range(2))
        folder.mkdir()
        try:
            started = time.monotonic()
            build(folder)
            names = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file()]
            manifest = Manifest(
                inputs,
                {name: hash_file(folder / name) for name in names},
                {name: (folder / name).stat().st_size for name in names},
                kind,
                round(time.monotonic() - started, 3),
                time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            )
            write_json(folder / MANIFEST, asdict(manifest))
            _flush_tree(folder)
            if os.path.lexists(path):
                os.replace(path, old)
            os.replace(folder, path)
            _flush(path.parent)
            remember_written(path, manifest.files)
            _remove(partial_folder(path))
        finally:
            for left in (folder, old):
                _remove(left)
    return Artifact(path)


def read_manifest(path: Path) -> dict:
    """Read an `artifact.json` and return the fields of `Manifest`; raises one of `DAMAGED` if it cannot be read."""
    return asdict(from_json(Manifest, read_json(path)))


def _flush_tree(folder: Path) -> None:
    """Write everything in a folder through to the disk, so that a power cut after its renaming loses nothing."""
    for place in (*folder.rglob("*"), folder):
        _flush(place)


def _flush(place: Path) -> None:
    try:
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not place.is_dir() and error.errno not in CANNOT_FLUSH:  # many file systems cannot flush folders
            raise


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)


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
