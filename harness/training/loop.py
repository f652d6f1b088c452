"""The training loop: one for SFT and for every loss, with the same optimiser, schedule and clipping."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from harness.backbones.language_model.policy import Policy
from harness.core.config import OptimConfig
from harness.training.checkpoint import Checkpoints, RunState
from harness.training.update import Backward, update_of

Batch = TypeVar("Batch")

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
    backward: Callable[[Batch, Backward], dict],
    config: OptimConfig,
    accelerator: Accelerator,
    after_step: Callable[[int, dict], None],
    checkpoints: Checkpoints | None = None,
    kept: Mapping[str, list | dict] = MappingProxyType({}),
) -> None:
    """Take one optimiser step per batch.

    `backward(batch, back)` adds the batch's gradient to the trained parameters, part by part through `back` (see
    `Backward`), and returns its metrics;
    `after_step(step, metrics)` gets these with `learning_rate`, `grad_norm` (before clipping) and `seconds`, for
    step 1, 2, ... With `checkpoints` a run that was interrupted goes on after its last one, with weights, optimiser,
    random state and what `kept` holds as they were then: `kept` names the lists and dicts of JSON values that
    `backward` and `after_step` change as they go (a log, counters). Raises `Diverged` when the loss or the gradient is
    not finite: the weights are then left as they were before that step.
    """
    with update_of(policy, config, accelerator) as update:
        state = RunState(policy.trained(), update, kept, accelerator)
        taken = 0
        if checkpoints and (found := checkpoints.latest()):
            state.restore(found)
            taken = found.step
        for step, batch in enumerate(batches[taken:], start=taken + 1):
            started = time.perf_counter()
            rate = config.lr * rate_factor(config, step - 1, len(batches))
            metrics = backward(batch, update.backward)
            norm = update.clip()
            if not (math.isfinite(metrics["loss"]) and math.isfinite(norm)):
                raise Diverged(
                    f"step {step}: loss {metrics['loss']}, gradient norm {norm}; lower train.lr or look at the loss"
                )
            update.step(rate)
            seconds = round(time.perf_counter() - started, 4)
            after_step(step, {**metrics, "learning_rate": rate, "grad_norm": norm, "seconds": seconds})
            if checkpoints and _decided_by_main(checkpoints.due(step), accelerator):
                snapshot = state.snapshot(step)
                if accelerator.is_main_process:
                    checkpoints.write(snapshot)


def rate_factor(config: OptimConfig, taken: int, total: int) -> float:
    """Return the factor of the learning rate for the step after `taken` of `total` steps.

    The warm-up is linear and its first step is not lost: step k of w warm-up steps has k / (w + 1) of the rate.
    """
    if taken < config.warmup_steps:
        return (taken + 1) / (config.warmup_steps + 1)
    share = (taken - config.warmup_steps) / max(1, total - config.warmup_steps)
    return SCHEDULES[config.schedule](min(1.0, share))


def _decided_by_main(decision: bool, accelerator: Accelerator) -> bool:
    """Return the main process's decision in all of them: their clocks differ."""
    if accelerator.num_processes == 1:
        return decision
    return bool(broadcast(torch.tensor(int(decision), device=accelerator.device)).item())
