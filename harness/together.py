"""Artifacts in whose building all processes of a run take part."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from harness.store import Artifact, build_artifact, find_artifact


def build_together(
    accelerator: Accelerator, path: Path, kind: str, inputs: Mapping, build: Callable[[Path], None]
) -> Artifact:
    """Return the artifact at `path`; if it is not there, all processes call `build`, and the main one's files are kept.

    (What a single process can build needs no more than the store's lock: one builds it, the others wait.)
    """
    found = find_artifact(path, inputs)
    if found or accelerator.num_processes == 1:
        return found or build_artifact(path, kind, inputs, build)
    if accelerator.is_main_process:
        built = []

        def tell_and_build(folder: Path) -> None:
            built.append(True)
            broadcast_object_list([True])
            build(folder)

        build_artifact(path, kind, inputs, tell_and_build)
        if not built:  # another run built it while this one waited for the lock
            broadcast_object_list([False])
    elif broadcast_object_list([None])[0]:
        with tempfile.TemporaryDirectory() as scratch:
            build(Path(scratch))
    accelerator.wait_for_everyone()
    return Artifact(path)
