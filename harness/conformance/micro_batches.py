"""The gradient of a loss by the real training objective, however the effective batch is cut, on a small policy."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from harness.conformance.bigram import VOCABULARY, Bigram, Text, Texts, supplies
from harness.core.prompt import Message
from harness.training.batch import Example, effective_batches
from harness.training.forward import Training
from harness.training.objective import PreferenceObjective
from harness.training.supply import Column, Split
from losses import Loss
from losses.probe import OTHERS, WIDTH

PAIRS = 6


def trained_gradients(loss: Loss, budgets: Sequence[int]) -> list[tuple[float, Tensor]]:
    """Return loss and gradient of one effective batch by the real training objective, cut to each token budget."""
    rng = np.random.default_rng(0)
    texts = [
        Text(*(tuple(rng.integers(1, VOCABULARY, rng.integers(2, 12)).tolist()) for _ in range(2)))
        for _ in range(2 * PAIRS + OTHERS)
    ]
    # the first lists hold further responses, the first with the fewest
    others = [tuple(range(2 * PAIRS, 2 * PAIRS + min(i + 1, OTHERS))) if i < PAIRS // 2 else () for i in range(PAIRS)]
    examples = [
        Example(
            (Message("user", str(i)),),
            2 * i,
            2 * i + 1,
            (3.0, 0.5 * rng.random(), *(1 + rng.random(len(others[i])))),
            others[i],
        )
        for i in range(PAIRS)
    ]
    embeddings = rng.normal(size=(PAIRS, WIDTH)).astype(np.float32)
    ratios = rng.uniform(0.5, 5.0, size=PAIRS).astype(np.float32)
    made_up = {"prompt_embeddings": Column.of_prompts(embeddings), "density_ratios": Column.of_prompts(ratios)}
    (batch,) = effective_batches(examples, batch_size=PAIRS, data=loss.data, seed=0, epoch=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = Bigram()
        start, second = copy.deepcopy(policy), Bigram()
        with torch.no_grad():
            policy.table += 0.1 * torch.randn_like(policy.table)
    found = []
    for budget in budgets:
        policy.zero_grad()
        source = Texts(texts, budget)
        split = Split(
            examples,
            True,
            examples,
            source,
            *source.score([start]),
            lambda other: other.score([start])[0],
            lambda _: embeddings,
            supplies(second) | {need: lambda split, plan, c=column: c for need, column in made_up.items()},
        )
        training = Training(policy, Accelerator(cpu=True))
        objective = PreferenceObjective(training, loss, loss.settings(), split.supply(loss, [batch]))
        value = objective.backward(batch)["loss"]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.parameters()]
        found.append((value, torch.cat([gradient.flatten() for gradient in gradients])))
    return found
