"""The state of a training run: taken after a step, and put back when the run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from harness.training.checkpoint import Snapshot
from harness.training.randomness import random_state, set_random_state
from harness.training.sharding import like, whole
from harness.training.update import Stepper


@dataclass
class RunState:
    """What a checkpoint is taken of.

    `kept` names lists and dicts of JSON values that the run changes as it goes (its log, its counters); they are
    restored in place.
    """

    weights: Mapping[str, nn.Parameter]
    update: Stepper
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
        for name, generator in random_state(device).items():
            tensors[f"random/{name}"] = self.accelerator.gather(generator.to(device)[None])
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
