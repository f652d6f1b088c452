"""The state of a training run: saved after a step, and restored when the run resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from harness.training.checkpoint import Snapshot
from harness.training.optimizer import Update
from harness.training.sharding import like, whole


@dataclass
class RunState:
    """The objects whose state a checkpoint saves. Random states are not saved: each step is seeded.

    `kept` maps names to lists and dicts of JSON values that the run modifies (its log, its counters); they are restored
    in place.
    """

    weights: Mapping[str, nn.Parameter]
    update: Update
    kept: Mapping[str, list | dict]
    accelerator: Accelerator

    def snapshot(self, step: int) -> Snapshot:
        """Return the state after `step` steps; only the main process's snapshot has tensors.

        All processes call it, as each holds only a slice of a sharded policy's tensors.
        """
        tensors = {f"weights/{name}": p.detach() for name, p in self.weights.items()}
        for index, state in self.update.state().items():
            tensors |= {f"optimizer/{index}/{key}": value for key, value in state.items()}
        gathered = {}
        for name, tensor in tensors.items():
            tensor = whole(tensor)
            if self.accelerator.is_main_process:
                gathered[name] = tensor.cpu().contiguous()
        return Snapshot(step, gathered, {"kept": dict(self.kept)})

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        """Restore the state of a snapshot."""
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in snapshot.tensors.items():
            kind, rest = name.split("/", 1)
            if kind == "weights":
                self.weights[rest].copy_(like(tensor, self.weights[rest]))
            else:
                index, key = rest.split("/")
                states.setdefault(int(index), {})[key] = tensor
        self.update.load(states)
        for name, kept in self.kept.items():
            kept.clear()
            (kept.extend if isinstance(kept, list) else kept.update)(snapshot.values["kept"][name])
