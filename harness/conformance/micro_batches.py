"""The gradient of a loss from the real training objective on a small policy, for several splits of the batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from harness.conformance.bigram import SUPPLIERS, VOCABULARY, Bigram, BigramSplit, Text, Texts
from harness.core.prompt import Message
from harness.training.batch import EffectiveBatch, Example, effective_batches
from harness.training.forward import Training
from harness.training.objective import PreferenceObjective
from harness.training.randomness import seeded
from harness.training.supply import Column, Split, Supply
from losses import Loss, Side
from losses.needs import NEEDS, Need
from losses.probe import OTHERS

PAIRS = 6


def trained_gradients(loss: Loss, budgets: Sequence[int], *, at_start: bool) -> list[tuple[float, Tensor]]:
    """Return loss and gradient of one effective batch from the real training objective, split by each token budget.

    `at_start`: the policy is its reference, and rounding is all that makes log-ratios differ from 0.
    """
    rng = np.random.default_rng(0)
    texts = [
        Text(*(tuple(rng.integers(1, VOCABULARY, rng.integers(2, 12)).tolist()) for _ in range(2)))
        for _ in range(2 * PAIRS + OTHERS)
    ]
    # the first half of the lists has further responses, the first of them the fewest
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
    (batch,) = effective_batches(examples, batch_size=PAIRS, data=loss.data, seed=0, epoch=0)
    with seeded(0):
        policy = Bigram()
        start, second = copy.deepcopy(policy), Bigram()
        if not at_start:
            with torch.no_grad():
                policy.table += 0.1 * torch.randn_like(policy.table)
    results = []
    for budget in budgets:
        policy.zero_grad()
        source = Texts(texts, budget)
        split = BigramSplit(
            examples,
            True,
            examples,
            source,
            *source.score([start]),
            lambda other: other.score([start])[0],
            lambda prompts: np.empty((len(prompts), 0), dtype=np.float32),  # needs of prompts are random
            SUPPLIERS,
            second,
        )
        training = Training(policy, Accelerator(cpu=True))
        objective = PreferenceObjective(training, loss, loss.settings(), _supply(split, loss, batch))
        value = objective.backward(batch)["loss"]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.parameters()]
        results.append((value, torch.cat([gradient.flatten() for gradient in gradients])))
    return results


def _supply(split: Split, loss: Loss, batch: EffectiveBatch) -> Supply:
    """Return what the loss needs; needs that depend only on the data have random values, as in `losses.probe`."""
    needs = [NEEDS.get(name) for name in sorted(loss.needs)]
    made_up = [need for need in needs if need.of == "prompt" or need.compute is not None]
    supply = split.supply(replace(loss, needs=loss.needs - {need.name for need in made_up}), [batch])
    generator = torch.Generator().manual_seed(0)
    columns = dict(supply.columns)
    for need in made_up:
        chosen, rejected = (_random(need, split, side, generator) for side in ("chosen", "rejected"))
        columns[need.name] = Column(chosen, chosen if need.of == "prompt" else rejected)
    return replace(supply, columns=columns)


def _random(need: Need, split: Split, side: str, generator: torch.Generator) -> np.ndarray:
    rows = [getattr(example, side) for example in split.examples]
    logps = split.reference.sums(rows)
    responses = Side(logps, logps, split.source.lengths(rows), name=side)
    return need.random(responses, generator).float().numpy()
