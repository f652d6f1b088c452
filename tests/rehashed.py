"""Makes a changed artifact look as if it had been written like that: as another version, or a hostile hand, would."""

from __future__ import annotations

from pathlib import Path

from harness.core.hashing import hash_file
from harness.core.store import MANIFEST, read_json, write_json


def rehash(folder: Path) -> None:
    """Write the hashes and sizes that an artifact's files have now into its manifest."""
    manifest = read_json(folder / MANIFEST)
    manifest["files"] = {name: hash_file(folder / name) for name in manifest["files"]}
    manifest["sizes"] = {name: (folder / name).stat().st_size for name in manifest["files"]}
    write_json(folder / MANIFEST, manifest)
