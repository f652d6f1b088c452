"""Training with DeepSpeed's ZeRO, stage 1 or 2: each process has the policy and a slice of the optimiser's state.

Only DeepSpeed's partitioned optimiser and its exchange of gradients during the backward pass are used. For stage 3,
which shards the policy too, use FSDP (`harness.training.sharding`).
"""

from __future__ import annotations

import logging

import deepspeed
import torch
from accelerate import Accelerator
from deepspeed.utils import logger, safe_get_full_optimizer_state, safe_set_full_optimizer_state
from torch import Tensor

from harness.core.config import OptimConfig
from harness.training.base import Policy
from harness.training.optimizer import State, optimizer_of, set_rate

logger.setLevel(logging.WARNING)


class ZeroUpdate:
    """An `Update` with the optimiser in DeepSpeed's hands."""

    def __init__(self, policy: Policy, config: OptimConfig, accelerator: Accelerator, stage: int):
        self.parameters = list(policy.trained().values())
        self.optimizer = optimizer_of(self.parameters, config)
        policy.together = True
        self._processes = accelerator.num_processes
        settings = {
            "train_micro_batch_size_per_gpu": 1,  # required by DeepSpeed, but has no effect here
            "gradient_clipping": config.clip,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 2**62,
        }
        self._engine, *_ = deepspeed.initialize(model=policy, optimizer=self.optimizer, config=settings)

    def backward(self, part: Tensor, last: bool) -> None:
        """Add the gradient of a part of a step's loss. DeepSpeed averages over processes; the factor makes it a sum."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(part * self._processes, scale_wrt_gas=False)

    def clip(self) -> float:
        """Return the norm of the gradient, which the next step clips."""
        return float(self._engine.optimizer.scaled_global_norm())

    def step(self, rate: float) -> None:
        """Take a step with this learning rate, then clear the gradient."""
        set_rate(self.optimizer, rate)
        self._engine.step()

    def close(self) -> None:
        """Release the policy, which DeepSpeed's hooks would otherwise keep in memory."""
        self._engine.destroy()

    def state(self) -> State:
        """Return the optimiser's state, gathered from all processes."""
        (flat,) = self.optimizer.state.values()
        return {
            index: {
                key: value.clone() if value.dim() == 0 else safe_get_full_optimizer_state(parameter, key)
                for key, value in flat.items()
            }
            for index, parameter in enumerate(self.parameters)
        }

    def load(self, states: State) -> None:
        """Load a state of full tensors, after the weights that belong to it and before the first step."""
        zero = self._engine.optimizer
        zero.refresh_fp32_params()
        (mine,) = zero.single_partition_of_fp32_groups
        self.optimizer.state[mine] = {
            key: tensor.clone() if tensor.dim() == 0 else torch.zeros_like(mine) for key, tensor in states[0].items()
        }
        zero._lazy_init_hp_params_optimizer_state()  # what DeepSpeed does after the first step
        for index, state in states.items():
            for key, tensor in state.items():
                if tensor.dim() > 0:
                    safe_set_full_optimizer_state(self.parameters[index], tensor, key)
