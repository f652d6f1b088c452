"""A tiny task, tokenised, with a policy and its reference's log-probs."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from harness.backbones.language_model.needs import SUPPLIERS, LanguageModelSplit
from harness.backbones.language_model.policy import LanguageModel, load_policy
from harness.backbones.language_model.scoring import BatchSource
from harness.backbones.language_model.tokens import Tokens
from harness.core.config import ModelConfig
from harness.core.prompt import Message, Prompt
from harness.training.base import LogProbs, Source
from harness.training.batch import EffectiveBatch, Example, effective_batches
from harness.training.forward import Training
from harness.training.objective import PreferenceObjective
from harness.training.supply import Column, Supplier
from losses import get_loss

PAIRS = 8


def augmented(prompt: Prompt) -> tuple[int, ...]:
    """Return another prompt for each prompt."""
    return (7, 11, 13 + int(prompt[0].content))


@dataclass
class Bench:
    """The parts of an objective."""

    policy: LanguageModel
    sequences: list[Tokens]
    examples: list[Example]
    start: LanguageModel
    second: LanguageModel
    embeddings: np.ndarray
    density_ratios: np.ndarray

    @property
    def reference(self) -> LogProbs:
        return self.under_start(self.source())

    def source(self, budget: int = 10**6) -> BatchSource:
        return BatchSource(self.sequences, pad_token=2, budget=budget)

    def under_start(self, source: Source) -> LogProbs:
        """Return the reference's log-probs."""
        return source.score([self.start])[0]

    def batch(self, loss: str) -> EffectiveBatch:
        (batch,) = effective_batches(self.examples, batch_size=PAIRS, data=get_loss(loss).data, seed=0, epoch=0)
        return batch

    def add_value_head(self) -> None:
        """Give the policy a value head whose value differs between tokens."""
        self.policy.add_value_head()
        with torch.no_grad():
            for parameter in self.policy.value_head.parameters():
                parameter.copy_(torch.linspace(-0.5, 0.5, parameter.numel()).view_as(parameter) + 0.1)

    def objective(
        self, loss: str, budget: int = 10**6, plan: Sequence[EffectiveBatch] = (), **settings
    ) -> PreferenceObjective:
        """Return the objective of a loss for the batches of a plan, by default the one batch of all pairs."""
        plan = plan or [self.batch(loss)]
        loss, source = get_loss(loss), self.source(budget)
        if "token_values" in loss.needs and self.policy.value_head is None:
            self.add_value_head()
        split = LanguageModelSplit(
            self.examples,
            True,
            self.examples,
            source,
            self.under_start(source),
            self.under_start,
            lambda examples: self.embeddings,
            SUPPLIERS | {"density_ratios": Supplier(lambda split, plan: Column.of_prompts(self.density_ratios))},
            lambda: source.score([self.second])[0],
            augmented,
        )
        training = Training(self.policy, Accelerator(cpu=True))
        return PreferenceObjective(training, loss, loss.settings(settings), split.supply(loss, plan))


def random_sequences(n: int, vocabulary: int, seed: int) -> list[Tokens]:
    rng = np.random.default_rng(seed)
    sequences = []
    for _ in range(n):
        prompt, *completions = (tuple(rng.integers(3, vocabulary, rng.integers(2, 20)).tolist()) for _ in range(3))
        sequences += [Tokens(prompt, completion) for completion in completions]
    return sequences


@pytest.fixture(scope="module")
def policies(tiny_model) -> tuple[LanguageModel, LanguageModel, LanguageModel]:
    """Return a policy, its reference and a second reference. Their weights differ slightly."""
    policy, start, second = (load_policy(tiny_model, ModelConfig(tune="full")) for _ in range(3))
    torch.manual_seed(1)
    with torch.no_grad():
        for moved in (policy, second):
            for parameter in moved.trained().values():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return policy, start, second


@pytest.fixture
def bench(policies) -> Bench:
    """Return a policy close to its reference, on pairs of very different lengths. Three have further responses."""
    policy, start, second = map(deepcopy, policies)
    sequences = random_sequences(PAIRS + 1, 500, seed=0)  # the last two are further responses
    others = {1: (2 * PAIRS,), 4: (2 * PAIRS, 2 * PAIRS + 1), 6: (2 * PAIRS + 1,)}
    examples = [
        Example((Message("user", str(i)),), 2 * i, 2 * i + 1, (4.0 + i, 1.0, 2.5, 3.5)[: 2 + len(more)], more)
        for i, more in ((i, others.get(i, ())) for i in range(PAIRS))
    ]
    embeddings = np.random.default_rng(0).normal(size=(PAIRS, 16)).astype(np.float32)
    density_ratios = np.linspace(0.3, 12, PAIRS, dtype=np.float32)
    return Bench(policy, sequences, examples, start, second, embeddings, density_ratios)
