"""Training of a policy that is sharded over the processes of a run, if `accelerate launch` requests it: FSDP2 or ZeRO.

Each process holds a slice of every parameter, its gradient and its optimiser state; a layer is gathered when it
computes. All processes must then make the same number of forward passes. accelerate starts the processes and
communicates between them. Sharding is PyTorch's `fully_shard`, called here instead of `Accelerator.prepare` because the
loss is already normalised over the whole batch: the processes' gradients are summed, not averaged.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from harness.core.config import ExperimentConfig
from harness.core.errors import UserError
from harness.training.base import Policy

ZERO_STAGES = (1, 2)  # DeepSpeed stages that do not shard the policy, see `harness.training.zero`


def sharding_asked() -> bool:
    """Whether the run was launched with FSDP, according to the environment set by `accelerate launch`."""
    return _launched_with("FSDP")


def check_launch(experiment: ExperimentConfig) -> None:
    """Raise `UserError` if the experiment cannot be trained with the options of this launch."""
    spread = "DeepSpeed" if _launched_with("DEEPSPEED") else "FSDP" if sharding_asked() else None
    tune = experiment.model.tune
    if spread and tune != "full":
        raise UserError(
            f"launched with {spread}, which is for model.tune=full; with model.tune={tune} little is trained: launch "
            f"without {spread}, and each process holds the model"
        )
    if spread != "DeepSpeed":
        return
    file = "experiments/paper/launch/deepspeed.yaml"
    if find_spec("deepspeed") is None:
        raise UserError(
            "launched with DeepSpeed, which is not installed; it is built with the torch that is here: "
            "pip install --no-build-isolation deepspeed"
        )
    if os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none") != "none":
        raise UserError(f"deepspeed_config_file is not read: say zero_stage in accelerate's settings, as {file} does")
    if zero_stage() not in ZERO_STAGES:
        raise UserError(
            f"zero_stage {zero_stage()}: DeepSpeed serves for stages 1 and 2 here; to spread the policy itself over "
            "the processes launch with FSDP: experiments/paper/launch/fsdp.yaml"
        )
    for what in ("OPTIMIZER", "PARAM"):
        device = os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE", "none")
        if device != "none":
            raise UserError(f"offload_{what.lower()}_device: {device} is not supported; leave it out, as {file} does")


def zero_stage() -> int | None:
    """Return the ZeRO stage of a launch with DeepSpeed; None for other launches."""
    return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2)) if _launched_with("DEEPSPEED") else None


def _launched_with(what: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{what}", "false").lower() == "true"


def shard(policy: Policy) -> None:
    """Shard a policy's parameters over all processes, one unit at a time.

    All units, including the outermost, are resharded after a forward pass, so that `Policy.trained` lists the slices.
    """
    units = policy.units()
    for unit in [fully_shard(unit, reshard_after_forward=True) for unit in units]:
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    for method in policy.entries():
        register_fsdp_forward_method(units[-1], method)
    policy.together = True


def is_sharded(policy: Policy) -> bool:
    """Whether `shard` was called on a policy."""
    return isinstance(policy, FSDPModule)


def equal_passes(passes: Sequence[list[int]], policy: Policy, accelerator: Accelerator) -> list[list[int]]:
    """Return a process's passes; if all must make equally many, padded at the end with empty ones."""
    if not policy.together:
        return list(passes)
    count = torch.tensor([len(passes)], device=accelerator.device)
    most = int(accelerator.gather(count).max())
    return [*passes, *([] for _ in range(most - len(passes)))]


def whole(tensor: Tensor) -> Tensor:
    """Return, in every process, the full tensor of a sharded one; return any other tensor unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return this process's part of a full tensor, on the device of `other` and sharded like it."""
    tensor = tensor.to(other.device)
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)
