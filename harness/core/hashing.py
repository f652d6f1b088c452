"""Content hashes of values, files and source code. Every key in the store is built from these."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from harness.core.source import code_of, sources_of


def hash_value(value: object) -> str:
    """Return the sha256 hex digest of a JSON-serialisable value in canonical form (sorted keys, exact floats)."""
    return hashlib.sha256(_canonical(value)).hexdigest()


def _canonical(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "surrogatepass")


def hash_list(values: Iterable[object]) -> str:
    """Return `hash_value` of a list of these values, which is never held as one text."""
    digest = hashlib.sha256(b"[")
    for number, value in enumerate(values):
        digest.update(b"," * (number > 0) + _canonical(value))
    digest.update(b"]")
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """Return the sha256 hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def hash_source(path: Path) -> str:
    """Return a digest of a Python file's code and of that of the user's own modules that it imports.

    Comments and docstrings change nothing, and neither does the version of Python (see `harness.core.source`).
    """
    first, *imported = (hash_value(code_of(file)) for file in sources_of(path))
    return hash_value([first, *sorted(imported)])


def _digest(file: BinaryIO) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
