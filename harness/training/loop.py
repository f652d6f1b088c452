"""The training loop that SFT and every loss share, with the same optimiser, schedule and clipping."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from harness.core.config import OptimConfig
from harness.training.base import Batches, Job, Policy
from harness.training.optimizer import Backward
from harness.training.randomness import seed_step
from harness.training.state import RunState
from harness.training.update import update_of

Batch = TypeVar("Batch")

# The factor of the learning rate as a function of the fraction of post-warm-up steps taken.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "linear": lambda share: 1.0 - share,
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
}


class Diverged(RuntimeError):
    """The loss or the gradient is no longer finite."""


def optimise(
    policy: Policy,
    batches: Batches[Batch],
    backward: Callable[[Batch, Backward], dict],
    config: OptimConfig,
    job: Job,
    *,
    seed: int,
    after_step: Callable[[int], None] = lambda step: None,
    kept: Mapping[str, list | dict] = MappingProxyType({}),
) -> None:
    """Take one optimiser step per batch; a batch is requested when its step begins.

    `backward(batch, back)` adds the batch's gradient to the trained parameters, part by part through `back` (see
    `Backward`), and returns its metrics. The job logs these with `learning_rate`, `grad_norm` (before clipping) and
    `seconds`; then `after_step(step)` is called, for step 1, 2, ... The random numbers of a step, such as dropout, are
    determined by `seed`, the step and the process. With checkpoints, an interrupted run resumes after the last one,
    with the weights, optimiser, log and `kept` values of that time. `kept` maps names to the lists and dicts of JSON
    values that `backward` and `after_step` modify. Raises `Diverged` if the loss or the gradient is not finite; the
    weights are then those before that step.
    """
    accelerator, checkpoints = job.accelerator, job.checkpoints
    with update_of(policy, config, accelerator) as update:
        state = RunState(policy.trained(), update, {"log": job.rows, **kept}, accelerator)
        taken = 0
        if checkpoints and (latest := checkpoints.latest()):
            state.restore(latest)
            taken = latest.step
        for step in range(taken + 1, len(batches) + 1):
            started = time.perf_counter()
            seed_step(seed, step, accelerator.process_index)
            batch = batches[step - 1]
            rate = config.lr * rate_factor(config, step - 1, len(batches))
            metrics = backward(batch, update.backward)
            norm = update.clip()
            if not (math.isfinite(metrics["loss"]) and math.isfinite(norm)):
                raise Diverged(
                    f"step {step}: loss {metrics['loss']}, gradient norm {norm}; lower train.lr or look at the loss"
                )
            update.step(rate)
            seconds = round(time.perf_counter() - started, 4)
            row = {**metrics, "learning_rate": rate, "grad_norm": norm, "seconds": seconds}
            job.log({"split": "train", "step": step, **row})
            after_step(step)
            job.progress(step, len(batches))
            if checkpoints and _decided_by_main(checkpoints.due(step), accelerator):
                snapshot = state.snapshot(step)
                if accelerator.is_main_process:
                    checkpoints.write(snapshot)


def rate_factor(config: OptimConfig, taken: int, total: int) -> float:
    """Return the factor of the learning rate for the step after `taken` of `total` steps.

    The warm-up is linear and does not start at 0: step k of w warm-up steps has the factor k / (w + 1).
    """
    if taken < config.warmup_steps:
        return (taken + 1) / (config.warmup_steps + 1)
    share = (taken - config.warmup_steps) / max(1, total - config.warmup_steps)
    return SCHEDULES[config.schedule](min(1.0, share))


def _decided_by_main(decision: bool, accelerator: Accelerator) -> bool:
    """Return the main process's decision in every process, because their clocks differ."""
    if accelerator.num_processes == 1:
        return decision
    return bool(broadcast(torch.tensor(int(decision), device=accelerator.device)).item())
