"""Checkpoints of a training run: a run that is killed and restarted ends as if it had not been interrupted.

    <artifact>.partial/step-00000040/
      tensors.safetensors  trained weights, optimiser state
      values.json          the step, and other state of the run (its log, its counters, a loss's running state)
      manifest.json        the hash of the artifact's inputs, and the sha256 of the two files and of those beside it
    <artifact>.partial/... files that the run has finished, such as policies kept during training

A checkpoint is complete or absent, belongs to one artifact's inputs, and is used only if its hashes match, those of the
files beside it included. If they do not, the previous one is used; therefore two are kept. The folder is removed when
the artifact is complete (see `harness.core.store`); until then nothing is moved out of it.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.core.duration import Every
from harness.core.hashing import hash_file, hash_value
from harness.core.store import read_json, write_json

TENSORS, VALUES, MANIFEST = "tensors.safetensors", "values.json", "manifest.json"
FORMAT = 2  # raise it when a checkpoint written before can no longer be resumed from
KEPT = 2  # the last one, and its predecessor in case the last one is damaged
LARGEST_SHARE = 0.02  # of the run time that checkpoints at time intervals may take


@dataclass(frozen=True)
class Snapshot:
    """The complete state of a run after `step` steps: tensors on the CPU, and JSON values."""

    step: int
    tensors: dict[str, Tensor]
    values: dict


class Checkpoints:
    """The checkpoints of one run, in `folder`, for the artifact with these `inputs`."""

    def __init__(self, folder: Path, inputs: Mapping, every: str):
        self.folder = Path(folder)
        self._key = hash_value({"format": FORMAT, "inputs": inputs})
        self._interval = Every.parse(every)
        self._good: list[str] = []  # names of the kept checkpoints, oldest first
        self._beside: dict[str, str] = {}  # sha256 of the files beside them, by their path in the folder
        self._last = time.monotonic()
        self._cost = 0.0  # seconds that writing the last one took

    def latest(self) -> Snapshot | None:
        """Return the newest undamaged checkpoint of these inputs, if there is one."""
        for path in sorted(self.folder.glob("step-*"), reverse=True):
            try:
                manifest = read_json(path / MANIFEST)
                snapshot = self._read(path, manifest)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                warnings.warn(f"{path} is damaged ({error}); the checkpoint before it is used", stacklevel=2)
                continue
            if snapshot:
                self._good, self._beside = [path.name], manifest["beside"]
                return snapshot
        return None

    def add_beside(self, folder: Path) -> None:
        """Make the files of a folder beside the checkpoints part of those written from now on. They must stay there."""
        files = (file for file in sorted(folder.rglob("*")) if file.is_file())
        self._beside |= {str(file.relative_to(self.folder)): hash_file(file) for file in files}

    def due(self, step: int) -> bool:
        """Whether to write a checkpoint after this step."""
        if self._interval.seconds is not None:
            return time.monotonic() - self._last >= max(self._interval.seconds, self._cost / LARGEST_SHARE)
        steps = self._interval.steps or 0
        return steps > 0 and step % steps == 0

    def write(self, snapshot: Snapshot) -> None:
        """Write a checkpoint and delete all older ones but the last."""
        started = time.monotonic()
        path = self.folder / f"step-{snapshot.step:08d}"
        temporary = self.folder / f".{path.name}.tmp-{uuid.uuid4().hex[:8]}"
        temporary.mkdir(parents=True)
        save_file(snapshot.tensors, temporary / TENSORS)
        write_json(temporary / VALUES, {"step": snapshot.step, **snapshot.values})
        files = {name: hash_file(temporary / name) for name in (TENSORS, VALUES)}
        write_json(temporary / MANIFEST, {"inputs": self._key, "files": files, "beside": self._beside})
        if path.exists():  # damaged or of other inputs; a valid one would have been resumed from
            shutil.rmtree(path)
        os.replace(temporary, path)
        self._good = [*self._good, path.name][-KEPT:]
        for other in self.folder.glob("*step-*"):
            if other.name not in self._good:
                shutil.rmtree(other, ignore_errors=True)
        self._last = time.monotonic()
        self._cost = self._last - started

    def _read(self, path: Path, manifest: dict) -> Snapshot | None:
        """Return a checkpoint that has this manifest, or None if it belongs to other inputs.

        Raises `ValueError` if a hash does not match, `OSError` if a file is missing.
        """
        if manifest["inputs"] != self._key:
            return None
        for name in (TENSORS, VALUES):
            if hash_file(path / name) != manifest["files"][name]:
                raise ValueError(f"{name} has another hash than when it was written")
        for name, digest in manifest["beside"].items():
            if hash_file(self.folder / name) != digest:
                raise ValueError(f"{name} beside it has another hash than when it was written")
        values = read_json(path / VALUES)
        return Snapshot(values.pop("step"), load_file(path / TENSORS), values)
