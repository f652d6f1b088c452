"""Optimiser steps, with the sum and the norm of the gradient over all processes of a run.

Each process holds a full copy of everything, a slice of everything (FSDP2), or a copy of the policy and a slice of the
optimiser's state (`harness.training.zero`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor

from harness.core.config import OptimConfig
from harness.training.base import Policy
from harness.training.optimizer import State, Update, optimizer_of, set_rate
from harness.training.sharding import is_sharded, like, whole, zero_stage


def plain_backward(part: Tensor, last: bool) -> None:
    """A `Backward` for cases where it does not matter which part is the last."""
    part.backward()


class PlainUpdate:
    """The optimiser of a policy that each process holds whole, or all together (FSDP)."""

    def __init__(self, policy: Policy, config: OptimConfig, accelerator: Accelerator):
        self.parameters = list(policy.trained().values())
        self.optimizer = optimizer_of(self.parameters, config)
        self._largest_norm = config.clip
        self._has_shares = accelerator.num_processes > 1 and not is_sharded(
            policy
        )  # otherwise the gradients are already summed
        self._accelerator = accelerator

    def backward(self, part: Tensor, last: bool) -> None:
        """Add the gradient of a part of a step's loss."""
        plain_backward(part, last)

    def clip(self) -> float:
        """Sum the processes' gradients, clip the result, and return its norm before clipping."""
        if self._has_shares:
            for parameter in self.parameters:
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self._accelerator.reduce(grad, "sum")
        return whole(torch.nn.utils.clip_grad_norm_(self.parameters, self._largest_norm)).item()

    def step(self, rate: float) -> None:
        """Take a step with this learning rate, then clear the gradient."""
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> State:
        """Return the optimiser's state; for a sharded policy, this process's slices."""
        return self.optimizer.state_dict()["state"]

    def load(self, states: State) -> None:
        """Load a state of full tensors, after the weights that belong to it."""
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
def update_of(policy: Policy, config: OptimConfig, accelerator: Accelerator) -> Iterator[Update]:
    """Within, give what takes the steps of a policy's training: with DeepSpeed a `ZeroUpdate`."""
    stage = zero_stage()
    if stage is None or accelerator.num_processes == 1:
        yield PlainUpdate(policy, config, accelerator)
        return
    from harness.training.zero import ZeroUpdate  # imports DeepSpeed, which takes seconds

    update = ZeroUpdate(policy, config, accelerator, stage)
    try:
        yield update
    finally:
        update.close()
