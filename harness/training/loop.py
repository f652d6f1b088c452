"""The training loop: one for SFT and for every loss, with the same optimiser, schedule and clipping."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator

from harness.config import OptimConfig
from harness.training.policy import Policy

Batch = TypeVar("Batch")

OPTIMIZERS = {"adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}
# What remains of the learning rate, by the share of the steps after the warm-up that has been taken.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "linear": lambda share: 1.0 - share,
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
}


class Diverged(RuntimeError):
    """The loss or the gradient is no longer finite."""


def optimise(
    policy: Policy,
    batches: Sequence[Batch],
    backward: Callable[[Batch], dict],
    config: OptimConfig,
    accelerator: Accelerator,
    after_step: Callable[[int, dict], None],
) -> None:
    """Take one optimiser step per batch.

    `backward(batch)` adds the batch's gradient to the trained parameters and returns its metrics;
    `after_step(step, metrics)` gets these with `learning_rate`, `grad_norm` (before clipping) and `seconds`, for
    step 1, 2, ... Raises `Diverged` when the loss or the gradient is not finite: the weights are then left as they
    were before that step.
    """
    parameters = list(policy.trained().values())
    optimizer = accelerator.prepare(
        OPTIMIZERS[config.optimizer](parameters, lr=config.lr, weight_decay=config.weight_decay)
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda taken: rate_factor(config, taken, len(batches)))
    try:
        for step, batch in enumerate(batches, start=1):
            started = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            metrics = backward(batch)
            _sum_over_processes(parameters, accelerator)
            norm = accelerator.clip_grad_norm_(parameters, config.clip).item()
            rate = scheduler.get_last_lr()[0]
            if not (torch.isfinite(torch.tensor([metrics["loss"], norm])).all()):
                raise Diverged(
                    f"step {step}: loss {metrics['loss']}, gradient norm {norm}; lower train.lr or look at the loss"
                )
            optimizer.step()
            scheduler.step()
            seconds = round(time.perf_counter() - started, 4)
            after_step(step, {**metrics, "learning_rate": rate, "grad_norm": norm, "seconds": seconds})
    finally:
        accelerator.free_memory()  # it keeps every optimiser that it prepared, and with them each cell's weights


def rate_factor(config: OptimConfig, taken: int, total: int) -> float:
    """Return the factor of the learning rate for the step after `taken` of `total` steps.

    The warm-up is linear and its first step is not lost: step k of w warm-up steps has k / (w + 1) of the rate.
    """
    if taken < config.warmup_steps:
        return (taken + 1) / (config.warmup_steps + 1)
    share = (taken - config.warmup_steps) / max(1, total - config.warmup_steps)
    return SCHEDULES[config.schedule](min(1.0, share))


def _sum_over_processes(parameters: Sequence[torch.nn.Parameter], accelerator: Accelerator) -> None:
    """Add up the processes' shares of the gradient; a process without a share has none to add."""
    if accelerator.num_processes == 1:
        return
    for parameter in parameters:
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = accelerator.reduce(grad, "sum")
