"""The optimiser of a run, built from the configuration and the same for every loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from harness.core.config import OptimConfig

# Adds the gradient of a part of a step's loss to the policy's; the truth value says whether it is the step's last part.
Backward = Callable[[Tensor, bool], None]
State = Mapping[int, Mapping[str, Tensor]]  # what the optimiser keeps of each trained parameter, by its number

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "rmsprop": torch.optim.RMSprop,
}


class Update(Protocol):
    """What takes the steps of a run. All processes take part in everything."""

    def backward(self, part: Tensor, last: bool, /) -> None:
        """Do what a `Backward` does."""

    def clip(self) -> float:
        """Add up the processes' shares of the gradient, see that it is clipped, and return the norm that it had."""

    def step(self, rate: float) -> None:
        """Take a step with this learning rate; the gradient is none afterwards."""

    def state(self) -> State:
        """Return the optimiser's state; of a sharded policy this process's slices."""

    def load(self, states: State) -> None:
        """Take over a state, of whole tensors, after the weights that belong to it. No step was taken yet."""


def optimizer_of(parameters: Sequence[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    """Return the optimiser that a configuration names, for these parameters."""
    return OPTIMIZERS[config.optimizer](parameters, lr=config.lr, weight_decay=config.weight_decay)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
