"""Checkpoints within a training run: killed at any step and run again, it ends as if it had never been interrupted.

    <artifact>.partial/step-00000040/
      tensors.safetensors  trained weights, optimiser state, random states
      values.json          the step, and what else the run keeps (its log, its counters, a loss's running state)
      manifest.json        the hash of the artifact's inputs, and the sha256 of the two files

A checkpoint is complete or absent, belongs to one artifact's inputs, and is not believed before its hashes are
right: where they are not, the one before it is used, and so two are kept. The folder goes with the artifact's
completion (see `harness.core.store`).
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

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.core.duration import Interval
from harness.core.hashing import hash_file, hash_value
from harness.core.store import read_json, write_json
from harness.training.randomness import random_state, set_random_state
from harness.training.sharding import like, whole
from harness.training.update import Update

TENSORS, VALUES, MANIFEST = "tensors.safetensors", "values.json", "manifest.json"
KEPT = 2  # the last, and the one before it in case the last is damaged
LARGEST_SHARE = 0.02  # of a run's time that checkpoints written by the clock may take


@dataclass(frozen=True)
class Snapshot:
    """All that the rest of a run depends on after `step` steps: tensors on the CPU, and JSON values."""

    step: int
    tensors: dict[str, Tensor]
    values: dict


class Checkpoints:
    """The checkpoints of one run, in `folder`, for the artifact with these inputs."""

    def __init__(self, folder: Path, inputs: Mapping, every: str):
        self.folder = Path(folder)
        self._key = hash_value(inputs)
        self._interval = Interval.parse(every)
        self._good: list[str] = []  # names of the newest complete ones, oldest first
        self._last = time.monotonic()
        self._cost = 0.0  # seconds that the last one took to write

    def latest(self) -> Snapshot | None:
        """Return the newest undamaged checkpoint of these inputs, if there is one."""
        for path in sorted(self.folder.glob("step-*"), reverse=True):
            try:
                found = self._read(path)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                warnings.warn(f"{path} is damaged ({error}); the checkpoint before it is used", stacklevel=2)
                continue
            if found:
                self._good = [path.name]
                return found
        return None

    def due(self, step: int) -> bool:
        """Whether it is time to write one after this step."""
        if self._interval.steps is not None:
            return bool(self._interval.steps) and step % self._interval.steps == 0
        return time.monotonic() - self._last >= max(self._interval.seconds, self._cost / LARGEST_SHARE)

    def write(self, snapshot: Snapshot) -> None:
        """Write a checkpoint; of those before it the last one stays."""
        started = time.monotonic()
        path = self.folder / f"step-{snapshot.step:08d}"
        temporary = self.folder / f".{path.name}.tmp-{uuid.uuid4().hex[:8]}"
        temporary.mkdir(parents=True)
        save_file(snapshot.tensors, temporary / TENSORS)
        write_json(temporary / VALUES, {"step": snapshot.step, **snapshot.values})
        files = {name: hash_file(temporary / name) for name in (TENSORS, VALUES)}
        write_json(temporary / MANIFEST, {"inputs": self._key, "files": files})
        if path.exists():  # damaged, or of other inputs: else the run would have begun after it
            shutil.rmtree(path)
        os.replace(temporary, path)
        self._good = [*self._good, path.name][-KEPT:]
        for other in self.folder.glob("*step-*"):
            if other.name not in self._good:
                shutil.rmtree(other, ignore_errors=True)
        self._last = time.monotonic()
        self._cost = self._last - started

    def _read(self, path: Path) -> Snapshot | None:
        """Return a checkpoint, or None if it is of other inputs; raises where it is damaged."""
        manifest = read_json(path / MANIFEST)
        if manifest["inputs"] != self._key:
            return None
        for name in (TENSORS, VALUES):
            if hash_file(path / name) != manifest["files"][name]:
                raise ValueError(f"{name} has another hash than when it was written")
        values = read_json(path / VALUES)
        return Snapshot(values.pop("step"), load_file(path / TENSORS), values)


@dataclass
class RunState:
    """What a checkpoint is taken of.

    `kept` names lists and dicts of JSON values that the run changes as it goes (its log, its counters); they are
    restored in place.
    """

    weights: Mapping[str, nn.Parameter]
    update: Update
    kept: Mapping[str, list | dict]
    accelerator: Accelerator

    def snapshot(self, step: int) -> Snapshot:
        """Return the state after `step` steps, in the main process; the others' has no tensors.

        All take part: each has random states of its own, and of a sharded policy a slice of every tensor.
        """
        tensors = {f"weights/{name}": p.detach() for name, p in self.weights.items()}
        for index, state in self.update.state().items():
            tensors |= {f"optimizer/{index}/{key}": value for key, value in state.items()}
        device = self.accelerator.device
        for name, state in random_state(device).items():
            tensors[f"random/{name}"] = self.accelerator.gather(state.to(device)[None])
        gathered = {}
        for name, tensor in tensors.items():
            tensor = whole(tensor)
            if self.accelerator.is_main_process:
                gathered[name] = tensor.cpu().contiguous()
        return Snapshot(step, gathered, {"kept": dict(self.kept)})

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        """Become what the snapshot was taken of.

        In a run of another number of processes random states are dealt out again: dropout falls otherwise there in
        any case.
        """
        states: dict[int, dict[str, Tensor]] = {}
        random: dict[str, Tensor] = {}
        for name, tensor in snapshot.tensors.items():
            kind, rest = name.split("/", 1)
            if kind == "weights":
                self.weights[rest].copy_(like(tensor, self.weights[rest]))
            elif kind == "optimizer":
                index, key = rest.split("/")
                states.setdefault(int(index), {})[key] = tensor
            else:
                # torch reads a state from where its storage begins: a view of a later row would be the first one's
                random[rest] = tensor[self.accelerator.process_index % len(tensor)].clone()
        self.update.load(states)
        for name, kept in self.kept.items():
            kept.clear()
            (kept.extend if isinstance(kept, list) else kept.update)(snapshot.values["kept"][name])
        set_random_state(self.accelerator.device, random)
