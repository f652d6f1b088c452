"""Artifacts that all processes of a run build together."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path

import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from harness.core.store import Artifact, build_artifact

AGREEMENT = timedelta(minutes=1)  # how long a failed process waits for the others to fail too


class AloneError(Exception):
    """This process failed and the others did not: they are blocked in a collective operation, possibly for hours."""


def build_together(
    accelerator: Accelerator,
    path: Path,
    kind: str,
    inputs: Mapping,
    build: Callable[[Path], None],
    accept: Callable[[Artifact], bool] = lambda artifact: True,
) -> Artifact:
    """Return the artifact at `path`; if it is missing, all processes call `build`, and the main one's files are kept.

    One that `accept` rejects is built again, as one from other inputs is.

    If `build` raises in all processes, its error is raised; if it raises in only some of them, it is the cause of an
    `AloneError`, after which the run must end. (An artifact that a single process can build needs only the store's
    lock.)
    """
    if accelerator.num_processes == 1:
        return build_artifact(path, kind, inputs, build, accept)
    beside = _group_beside(accelerator)
    try:
        _build_by_all(accelerator, path, kind, inputs, build, accept)
        accelerator.wait_for_everyone()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a loss may call sys.exit
        try:
            dist.barrier(beside)
        except RuntimeError:
            who = f"process {accelerator.process_index + 1} of {accelerator.num_processes}"
            raise AloneError(f"{who} failed where others did not: {type(error).__name__}: {error}") from error
        raise
    return Artifact(path)


@cache
def _group_beside(accelerator: Accelerator) -> dist.ProcessGroup:
    """A separate process group for agreeing on a failure: in the default group others may be inside an operation."""
    accelerator.wait_for_everyone()
    return dist.new_group(backend="gloo", timeout=AGREEMENT)


def _build_by_all(
    accelerator: Accelerator,
    path: Path,
    kind: str,
    inputs: Mapping,
    build: Callable[[Path], None],
    accept: Callable[[Artifact], bool],
) -> None:
    if accelerator.is_main_process:
        built = []

        def tell_and_build(folder: Path) -> None:
            built.append(True)
            broadcast_object_list([True])
            build(folder)

        build_artifact(path, kind, inputs, tell_and_build, accept)
        if not built:  # it already existed
            broadcast_object_list([False])
    elif broadcast_object_list([None])[0]:
        with tempfile.TemporaryDirectory() as scratch:
            build(Path(scratch))
