"""Torch's random numbers: seeded for each step of training, and restored to repeat a forward pass exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def seed_step(seed: int, step: int, process: int) -> None:
    """Seed torch's generators for a training step of one process.

    What the step draws, such as dropout, then depends on nothing that the process did before: not on evaluations, on
    loaded models, or on whether the run was interrupted.
    """
    digest = hashlib.sha256(f"{seed}:{step}:{process}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big"))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, torch's generators start from `seed`; afterwards they go on as if nothing had been drawn."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's generators, uint8, by device type: the CPU's and, on a GPU, that of `device`."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(device: torch.device, states: dict[str, Tensor]) -> None:
    """Restore the states that `random_state` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
