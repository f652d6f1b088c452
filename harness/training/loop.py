"""The training loop: one for SFT and for every loss, with the same optimiser, schedule and clipping."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from transformers import get_scheduler

from harness.config import OptimConfig
from harness.training.policy import Policy

Batch = TypeVar("Batch")

OPTIMIZERS = {"adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


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
    scheduler = get_scheduler(
        SCHEDULES[config.schedule], optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=len(batches)
    )
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
    accelerator.free_memory()  # it keeps every optimiser that it prepared, and with them each cell's weights


def _sum_over_processes(parameters: Sequence[torch.nn.Parameter], accelerator: Accelerator) -> None:
    """Add up the processes' shares of the gradient; a process without a share has none to add."""
    if accelerator.num_processes == 1:
        return
    for parameter in parameters:
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = accelerator.reduce(grad, "sum")
