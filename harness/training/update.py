"""From gradient to step: the optimiser, and the sum and the norm of the gradient over all processes of a run.

How these are held is one of three: each process has a copy of all, or a slice of all (FSDP2), or a copy of the policy
and a slice of the rest (`harness.training.zero`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from harness.core.config import OptimConfig
from harness.training.base import Policy
from harness.training.optimizer import State, optimizer_of, set_rate
from harness.training.sharding import is_sharded, like, whole, zero_stage

# Adds the gradient of a part of a step's loss to the policy's; the truth value says whether it is the step's last part.
Backward = Callable[[Tensor, bool], None]


def plain_backward(part: Tensor, last: bool) -> None:
    """Do what a `Backward` does, where nothing hinges on which part is the last."""
    part.backward()


class Stepper(Protocol):
    """Takes the optimiser steps of a run: `Update` or `ZeroUpdate`. Every method is called by all processes."""

    def backward(self, part: Tensor, last: bool, /) -> None:
        """Add the gradient of a part of a step's loss (see `Backward`)."""

    def clip(self) -> float:
        """Return the norm of the whole gradient before clipping."""

    def step(self, rate: float) -> None:
        """Take a step with this learning rate, which clears the gradient."""

    def state(self) -> State:
        """Return the optimiser's state."""

    def load(self, states: State) -> None:
        """Load a state of whole tensors, after the weights that belong to it."""


class Update:
    """The optimiser of a policy that each process holds whole, or all together (FSDP)."""

    def __init__(self, policy: Policy, config: OptimConfig, accelerator: Accelerator):
        self.parameters = list(policy.trained().values())
        self.optimizer = optimizer_of(self.parameters, config)
        self.backward: Backward = plain_backward
        self._largest_norm = config.clip
        self._has_shares = accelerator.num_processes > 1 and not is_sharded(policy)  # else their sum is already there
        self._accelerator = accelerator

    def clip(self) -> float:
        """Add up the processes' shares of the gradient, clip it, and return the norm that it had before."""
        if self._has_shares:
            for parameter in self.parameters:
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self._accelerator.reduce(grad, "sum")
        return whole(torch.nn.utils.clip_grad_norm_(self.parameters, self._largest_norm)).item()

    def step(self, rate: float) -> None:
        """Take a step with this learning rate; the gradient is none afterwards."""
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> State:
        """Return the optimiser's state; of a sharded policy this process's slices."""
        return self.optimizer.state_dict()["state"]

    def load(self, states: State) -> None:
        """Take over a state, of whole tensors, after the weights that belong to it."""
        sliced = {
            index: {
                key: like(tensor, self.parameters[index]) if tensor.shape == self.parameters[index].shape else tensor
                for key, tensor in state.items()
            }
            for index, state in states.items()
        }
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": sliced, "param_groups": groups})


@contextmanager
def update_of(policy: Policy, config: OptimConfig, accelerator: Accelerator) -> Iterator[Stepper]:
    """Within, give what takes the steps of a policy's training: with DeepSpeed a `ZeroUpdate`, which is used alike."""
    stage = zero_stage()
    if stage is None or accelerator.num_processes == 1:
        yield Update(policy, config, accelerator)
        return
    from harness.training.zero import ZeroUpdate  # imports DeepSpeed, which takes seconds

    update = ZeroUpdate(policy, config, accelerator, stage)
    try:
        yield update
    finally:
        update.close()
