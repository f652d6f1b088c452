"""Made-up batches that losses are tried on: just what a loss declares, with the gradients of what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from harness.training.batches import TokenBatch, effective_batches
from harness.training.data import Example, Tokens
from harness.training.objective import PreferenceObjective
from harness.training.precompute import BatchSource, score
from losses import Loss, PreferenceBatch, Side

CHOSEN, REJECTED, WIDTH = 6, 4, 8  # examples of each class (pairs: as many of both), and an embedding's dimensions
VOCABULARY, PAIRS = 16, 6


def probe(loss: Loss, *, seed: int = 0, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> PreferenceBatch:
    """Return a random batch with what the loss declares and no more; token counts are always there.

    Log-ratios are normal with standard deviation `scale`, in nats. The chosen response of a pair scores higher.
    """
    g = torch.Generator().manual_seed(seed)
    sizes = (CHOSEN, CHOSEN if loss.data == "paired" else REJECTED)
    embeddings = [torch.randn(n, WIDTH, generator=g, dtype=torch.float64).to(dtype) for n in sizes]
    if loss.data == "paired":
        embeddings[1] = embeddings[0]
    sides = []
    for name, n, prompts, bonus in zip(("chosen", "rejected"), sizes, embeddings, (4.0, 0.0), strict=True):
        tokens = torch.randint(4, 40, (n,), generator=g)
        policy = -tokens * (0.2 + 2 * torch.rand(n, generator=g, dtype=torch.float64))
        reference = policy - scale * torch.randn(n, generator=g, dtype=torch.float64)
        scores = bonus + torch.rand(n, generator=g, dtype=torch.float64)
        optional = {"reference": reference.to(dtype), "scores": scores.to(dtype), "prompt_embeddings": prompts}
        given = {field: value for field, value in optional.items() if field in loss.needs}
        sides.append(Side(policy.to(dtype), tokens=tokens, name=name, **given))
    return PreferenceBatch(*sides)


def at_start(batch: PreferenceBatch) -> PreferenceBatch:
    """Return the batch with the policy moved onto its reference, where there is one."""
    return PreferenceBatch(
        *(s if s.reference is None else replace(s, policy=s.reference) for s in (batch.chosen, batch.rejected))
    )


def rows_and_gradients(loss: Loss, batch: PreferenceBatch, settings: Mapping) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows, and d sum(rows) / d log-prob of the chosen and of the rejected."""
    policies = [side.policy.detach().clone().requires_grad_() for side in (batch.chosen, batch.rejected)]
    rows = loss(batch.with_policy(*policies), **settings)
    gradients = torch.autograd.grad(rows.sum(), policies, allow_unused=True)
    return rows.detach(), *(torch.zeros_like(p) if g is None else g for p, g in zip(policies, gradients, strict=True))


def rows_of(side: Side, order: Tensor | Sequence[int]) -> Side:
    """Return some rows of a side, in another order."""
    order = torch.as_tensor(order, dtype=torch.long)
    fields = ("policy", "reference", "tokens", "scores", "prompt_embeddings")
    return replace(side, **{f: getattr(side, f)[order] for f in fields if getattr(side, f) is not None})


def one_by_one(loss: Loss, batch: PreferenceBatch) -> list[PreferenceBatch]:
    """Return each pair, or each unpaired response, as a batch of its own."""
    wins, rest = range(len(batch.chosen)), range(len(batch.rejected))
    parts = (
        [([i], [i]) for i in wins] if loss.data == "paired" else [([i], []) for i in wins] + [([], [i]) for i in rest]
    )
    return [PreferenceBatch(rows_of(batch.chosen, a), rows_of(batch.rejected, b)) for a, b in parts]


class Bigram(nn.Module):
    """The smallest causal language model: log-probs of a token given the one before it. Stands in for a `Policy`."""

    compute_dtype, device, trunk = torch.float32, torch.device("cpu"), None

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY))

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return `(targets,)` log-probs of the batch's completion tokens."""
        previous = batch.input_ids.flatten()[batch.position]
        return self.table.log_softmax(-1)[previous, batch.targets]


def trained_gradients(loss: Loss, budgets: Sequence[int]) -> list[tuple[float, Tensor]]:
    """Return loss and gradient of one effective batch by the real training objective, cut to each token budget."""
    from accelerate import Accelerator

    rng = np.random.default_rng(0)
    sequences = [
        Tokens(*(tuple(rng.integers(1, VOCABULARY, rng.integers(2, 12)).tolist()) for _ in range(2)))
        for _ in range(2 * PAIRS)
    ]
    examples = [Example((), 2 * i, 2 * i + 1) for i in range(PAIRS)]
    embeddings = rng.normal(size=(PAIRS, WIDTH)).astype(np.float32)
    (batch,) = effective_batches(examples, batch_size=PAIRS, data=loss.data, seed=0, epoch=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = Bigram()
        (reference,) = score([policy], BatchSource(sequences, pad_token=0, budget=10**6))
        with torch.no_grad():
            policy.table += 0.1 * torch.randn_like(policy.table)
    found = []
    for budget in budgets:
        policy.zero_grad()
        source = BatchSource(sequences, pad_token=0, budget=budget)
        objective = PreferenceObjective(
            policy, loss, loss.settings(), source, reference, embeddings, Accelerator(cpu=True)
        )
        found.append((objective.backward(batch)["loss"], policy.table.grad.clone()))
    return found
