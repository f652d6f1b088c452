"""Made-up batches that losses are tried on: just what a loss declares, with the gradients of what it returns."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from harness.backbones.language_model.rows import TokenBatch
from harness.backbones.language_model.scoring import BatchSource, score
from harness.backbones.language_model.tokens import Tokens
from harness.core.prompt import Message
from harness.training.batch import Example, effective_batches
from harness.training.objective import PreferenceObjective
from harness.training.supply import ScoredSequences, Split
from losses import Loss
from losses.probe import OTHERS, WIDTH

VOCABULARY, PAIRS = 16, 6


class Bigram(nn.Module):
    """The smallest causal language model: log-probs of a token given the one before it. Stands in for a `Policy`."""

    compute_dtype, device, trunk, together = torch.float32, torch.device("cpu"), None, False

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY))
        self.values = nn.Parameter(torch.randn(VOCABULARY))

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return `(targets,)` log-probs of the batch's completion tokens."""
        previous = batch.input_ids.flatten()[batch.position]
        return self.table.log_softmax(-1)[previous, batch.targets]

    def with_values(self, batch: TokenBatch) -> Tensor:
        """Return `(2, targets)` log-probs and values of the batch's completion tokens."""
        return torch.stack([self(batch), self.values[batch.input_ids.flatten()[batch.position]]])

    def confidences(self, batch: TokenBatch) -> Tensor:
        """Return `(targets,)` log p(y_t) - log sum_v p(v)^2."""
        previous = batch.input_ids.flatten()[batch.position]
        collisions = (2 * self.table.log_softmax(-1)).logsumexp(-1)[previous]
        return (self(batch) - collisions).detach()


def trained_gradients(loss: Loss, budgets: Sequence[int]) -> list[tuple[float, Tensor]]:
    """Return loss and gradient of one effective batch by the real training objective, cut to each token budget."""
    from accelerate import Accelerator

    rng = np.random.default_rng(0)
    sequences = [
        Tokens(*(tuple(rng.integers(1, VOCABULARY, rng.integers(2, 12)).tolist()) for _ in range(2)))
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
    (batch,) = effective_batches(examples, batch_size=PAIRS, data=loss.data, seed=0, epoch=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = Bigram()
        first, other = copy.deepcopy(policy), Bigram()
        with torch.no_grad():
            policy.table += 0.1 * torch.randn_like(policy.table)
    found = []
    for budget in budgets:
        policy.zero_grad()

        def scored(sequences: list[Tokens], budget: int = budget) -> ScoredSequences:
            source = BatchSource(sequences, pad_token=0, budget=budget)
            return ScoredSequences(source, *score([first], source))

        given = scored(sequences)
        (second,) = score([other], given.batches)
        split = Split(
            examples, True, given.batches, given.reference, embeddings, ratios, second, scored, lambda prompt: (1, 2)
        )
        objective = PreferenceObjective(
            policy, loss, loss.settings(), split.supply(loss, [batch]), Accelerator(cpu=True)
        )
        value = objective.backward(batch)["loss"]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.parameters()]
        found.append((value, torch.cat([gradient.flatten() for gradient in gradients])))
    return found
