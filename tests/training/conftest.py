"""A tiny task, tokenised, with a policy and its reference's log-probs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from harness.config import ModelConfig
from harness.tasks.base import Message
from harness.training.data import Example, Tokens
from harness.training.objective import PreferenceObjective
from harness.training.policy import Policy, load_policy
from harness.training.precompute import BatchSource, TokenLogProbs, score
from losses import get_loss

PAIRS = 8


@dataclass
class Bench:
    """What an objective is made of."""

    policy: Policy
    sequences: list[Tokens]
    examples: list[Example]
    reference: TokenLogProbs
    embeddings: np.ndarray

    def objective(self, loss: str, budget: int = 10**6, **settings) -> PreferenceObjective:
        loss = get_loss(loss)
        return PreferenceObjective(
            self.policy,
            loss,
            loss.settings(settings),
            BatchSource(self.sequences, pad_token=2, budget=budget),
            self.reference,
            self.embeddings,
            Accelerator(cpu=True),
        )


def random_sequences(n: int, vocabulary: int, seed: int) -> list[Tokens]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        prompt, *completions = (tuple(rng.integers(3, vocabulary, rng.integers(2, 20)).tolist()) for _ in range(3))
        found += [Tokens(prompt, completion) for completion in completions]
    return found


@pytest.fixture
def bench(tiny_model) -> Bench:
    """A policy one nudge away from its reference, on pairs of very different lengths."""
    policy = load_policy(tiny_model, ModelConfig(tune="full"))
    sequences = random_sequences(PAIRS, 500, seed=0)
    (reference,) = score([policy], BatchSource(sequences, pad_token=2, budget=10**6))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trained().values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    examples = [Example((Message("user", str(i)),), 2 * i, 2 * i + 1) for i in range(PAIRS)]
    embeddings = np.random.default_rng(0).normal(size=(PAIRS, 16)).astype(np.float32)
    return Bench(policy, sequences, examples, reference, embeddings)
