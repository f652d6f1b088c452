"""The optimiser of a run, built from the configuration and the same for every loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from harness.core.config import OptimConfig

State = Mapping[int, Mapping[str, Tensor]]  # the optimiser's state of each trained parameter, by its index

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "rmsprop": torch.optim.RMSprop,
}


def optimizer_of(parameters: Sequence[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    """Return the optimiser that a configuration names, for these parameters."""
    return OPTIMIZERS[config.optimizer](parameters, lr=config.lr, weight_decay=config.weight_decay)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
