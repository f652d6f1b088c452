"""Every registered loss on one small policy, in whatever layout: the effective batch of 8 cut into micro-batches, and
shared by as many processes as there are.

    python -m torch.distributed.run --standalone --nproc_per_node 2 -m tests.training.layouts FILE WAYS LOSS ...

trains losses in all processes together, each in one way after the other, and writes the first loss and gradient and the
last weights of each to FILE. The ways, with commas between, are "copies" (the policy in each process), "shards" (spread
over them, by FSDP) and, where the environment is that of a launch with DeepSpeed, "zero" (a copy in each, the optimiser
spread).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from harness.backbones.language_model.policy import LanguageModel
from harness.backbones.language_model.tokens import Tokens
from harness.core.config import ModelConfig, OptimConfig
from harness.core.exits import leave
from harness.core.prompt import Message
from harness.training.base import Job
from harness.training.batch import Example, effective_batches
from harness.training.loop import optimise
from harness.training.sharding import shard, whole
from losses import get_loss, list_losses
from tests.training.conftest import Bench

PAIRS, EFFECTIVE, STEPS = 16, 8, 10
LENGTH, VOCABULARY = 14, 64
CUTS = (8, 4, 2, 1)  # pairs (or lists) in a micro-batch
LOSSES = (*list_losses(), "dpo+wpo")  # a modifier that looks at the policy once more


def small_policy(seed: int = 0) -> LanguageModel:
    """A Llama of two layers, the same whenever it is made with the same seed."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    return LanguageModel(LlamaForCausalLM(config), ModelConfig(tune="full"))


def small_bench(loss: str, *, at_start: bool = False) -> Bench:
    """Sixteen lists of three, with scores, all sequences of one length, so that a token budget is a number of lists.

    The policy is one nudge away from its reference, unless `at_start`, and has a value head if the loss needs it.
    """
    rng = np.random.default_rng(0)
    sequences, examples = [], []
    for i in range(PAIRS):
        size = int(rng.integers(2, LENGTH - 4))
        prompt = tuple(rng.integers(3, VOCABULARY, size).tolist())
        first = len(sequences)
        sequences += [Tokens(prompt, tuple(rng.integers(3, VOCABULARY, LENGTH - size).tolist())) for _ in range(3)]
        scores = (3.0 + rng.random(), 1.0 + rng.random() / 2, 2.0 + rng.random())
        examples.append(Example((Message("user", str(i)),), first, first + 1, scores, (first + 2,)))
    policy, start, second = small_policy(), small_policy(), small_policy(seed=2)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trained().values() if not at_start else ():
            parameter.add_(0.02 * torch.randn_like(parameter))
    embeddings = rng.normal(size=(PAIRS, 16)).astype(np.float32)
    density_ratios = np.linspace(0.3, 12, PAIRS, dtype=np.float32)
    bench = Bench(policy, sequences, examples, start, second, embeddings, density_ratios)
    if "token_values" in get_loss(loss).needs:
        bench.add_value_head()
    return bench


@dataclass
class Trained:
    """What training makes of the policy: loss and gradient of the first batch, and the weights after all steps."""

    value: torch.Tensor
    gradient: torch.Tensor
    weights: torch.Tensor
    passes: int  # that this process makes of the first batch


def train(
    loss: str,
    micro_batch: int,
    accelerator: Accelerator,
    *,
    steps: int = STEPS,
    way: str = "copies",
    at_start: bool = False,
) -> Trained:
    """Train in micro-batches of so many pairs (or lists)."""
    bench, data = small_bench(loss, at_start=at_start), get_loss(loss).data
    if way == "shards":
        shard(bench.policy)
    plan = [
        batch
        for epoch in range(STEPS * EFFECTIVE // PAIRS)
        for batch in effective_batches(bench.examples, batch_size=EFFECTIVE, data=data, seed=0, epoch=epoch)
    ]
    objective = bench.objective(loss, micro_batch * LENGTH * (3 if data == "listwise" else 2), plan)
    objective.training.accelerator = accelerator
    seen = []

    def backward(batch, back) -> dict:
        metrics = objective.backward(batch, back)
        if not seen:
            grads = [GRADIENTS[way](p, accelerator) for p in bench.policy.trained().values()]
            seen.append((torch.tensor(metrics["loss"], dtype=torch.float64), flat(grads)))
        return metrics

    config = OptimConfig(lr=1e-3, optimizer="rmsprop", warmup_steps=2, schedule="cosine", clip=1.0)
    optimise(bench.policy, plan[:steps], backward, config, Job(accelerator, Path()), seed=0)
    passes = len(objective._passes(plan[0]))
    return Trained(*seen[0], flat(bench.policy.trained().values()), passes)


def added_up(parameter: torch.nn.Parameter, accelerator: Accelerator) -> torch.Tensor:
    """The sum of the processes' gradients."""
    return accelerator.reduce(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad, "sum")


def put_together_by_deepspeed(parameter: torch.nn.Parameter, accelerator: Accelerator) -> torch.Tensor:
    from deepspeed.utils import safe_get_full_grad

    return safe_get_full_grad(parameter)


GRADIENTS = {"copies": added_up, "shards": lambda parameter, _: parameter.grad, "zero": put_together_by_deepspeed}


def flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([whole(tensor.detach()).flatten() for tensor in tensors])


def main(path: str, ways: str, *losses: str) -> None:
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes > 1
    tensors = {}
    for loss in losses:
        for way in ways.split(","):
            trained = train(loss, micro_batch=2, accelerator=accelerator, way=way)
            for name in ("value", "gradient", "weights"):
                tensors[f"{loss}/{way}/{name}"] = getattr(trained, name)
    if accelerator.is_main_process:
        save_file(tensors, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
