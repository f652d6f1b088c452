"""Relative Preference Optimization (Yin et al. 2024): every chosen response against every rejected one.

The contrast covers the whole effective batch: `Delta[i, j] = s_w[i] - s_l[j]`, the log-ratio of chosen response i
minus that of rejected response j. The variants differ only in their weights. The formulas were checked against
`trainers.py` of yinyueqin/relative-preference-optimization, with two corrections: embeddings and softmax stay in
fp32, and the contrast covers the effective batch instead of one device's share of it.

The prompts' partition terms cancel only if i and j share a prompt; off the diagonal they do not, and the paper argues
that they can be dropped. The weights are inside the sigmoid and so also lower beta: on the diagonal the effective beta
is `beta * W[i, i]`. DPO at `beta * mean(W[i, i])` is the control for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from losses.batch import PreferenceBatch
from losses.bounds import Positive, Share
from losses.registry import Registry, RegistryError, origin_of
from losses.spec import register_loss

PAPER = "2402.10958"
BETAS = [0.01, 0.05, 0.1, 0.3]
TEMPERATURES = [0.25, 0.5, 0.75]
DIAGONAL_WEIGHT = 0.8  # the paper's
APPLIES_TO = ("logits", "losses")


@dataclass(frozen=True)
class Weighting:
    """`weights(batch, temperature)` is `(M, N)`; they multiply the contrasts' logits or their losses (`of`)."""

    weights: Callable[[PreferenceBatch, float], Tensor]
    of: str


WEIGHTINGS: Registry[Weighting] = Registry("weighting")


def register_weighting(name: str, *, of: str = "logits") -> Callable[[Callable], Callable]:
    """Register `f(batch, temperature) -> (M, N) weights`, for chosen i in rows against rejected j in columns.

    Weights of "logits" are inside the sigmoid, and a row is the mean over j; weights of "losses" multiply
    -log sigmoid(beta * Delta), and a row is their sum. Raises `RegistryError` for any other `of` or a name already
    taken.
    """
    if of not in APPLIES_TO:
        raise RegistryError(f"weighting {name!r}: of is {of!r}; it must be one of {', '.join(APPLIES_TO)}")

    def decorate(function: Callable[[PreferenceBatch, float], Tensor]) -> Callable:
        WEIGHTINGS.add(name, Weighting(function, of), origin_of(function))
        return function

    return decorate


def embedding_weights(chosen: Tensor, rejected: Tensor, temperature: float) -> Tensor:
    """Return `(M, N)` weights: softmax over the rejected of -(cosine distance of the prompts) / temperature.

    `chosen` is `(M, d)` and `rejected` `(N, d)`, prompt embeddings of any norm; each row sums to 1.
    """
    cosine = normalize(chosen, dim=1) @ normalize(rejected, dim=1).T
    return torch.softmax((cosine - 1) / temperature, dim=1)


def diagonal_weights(batch: PreferenceBatch, own: float) -> Tensor:
    """Return `(M, M)` weights: `own` for the pair itself, the rest split among the others; 1 for a single pair."""
    n = len(batch.chosen)
    if n == 1:
        return batch.chosen.policy.new_ones(1, 1)
    weights = batch.chosen.policy.new_full((n, n), (1 - own) / (n - 1))
    return weights.fill_diagonal_(own)


@register_weighting("embedding")
def embedding(batch: PreferenceBatch, temperature: float) -> Tensor:
    """Gives similar prompts more weight: the paper's weights."""
    return embedding_weights(
        batch.chosen.require("prompt_embeddings"), batch.rejected.require("prompt_embeddings"), temperature
    )


@register_weighting("uniform")
def uniform(batch: PreferenceBatch, temperature: float) -> Tensor:
    """Every weight is 1: the paper's ablation, with a far larger effective beta than the embedding weights."""
    return batch.chosen.policy.new_ones(len(batch.chosen), len(batch.rejected))


@register_weighting("uniform_mean")
def uniform_mean(batch: PreferenceBatch, temperature: float) -> Tensor:
    """Every weight is 1/M: rows sum to 1 like those of the embedding weights, whose high-temperature limit this is."""
    return uniform(batch, temperature) / len(batch.rejected)


@register_weighting("diagonal", of="losses")
def diagonal(batch: PreferenceBatch, temperature: float) -> Tensor:
    """0.8 for the pair itself, 0.2 split evenly among all other contrasts: the paper's ablation."""
    return diagonal_weights(batch, DIAGONAL_WEIGHT)


@register_weighting("permuted_embedding")
def permuted_embedding(batch: PreferenceBatch, temperature: float) -> Tensor:
    """The embedding weights of the wrong prompts: each pair takes the embedding of the next pair in the batch.

    A control: the diagonal stays the largest and the weights keep their distribution, but no longer reflect which
    prompts are similar. It depends on the order of the batch, which the seed determines.
    """
    chosen, rejected = batch.chosen.require("prompt_embeddings"), batch.rejected.require("prompt_embeddings")
    return embedding_weights(chosen.roll(1, dims=0), rejected.roll(1, dims=0), temperature)


def contrast(batch: PreferenceBatch) -> Tensor:
    """Return `(M, N)`: the log-ratio of chosen i minus that of rejected j, in nats."""
    return batch.chosen.logratio[:, None] - batch.rejected.logratio[None, :]


def weighted_logits(batch: PreferenceBatch, beta: float, weights: Tensor | float) -> Tensor:
    """Return `(M,)`, row i: mean_j -log sigmoid(beta * W[i, j] * Delta[i, j])."""
    return -logsigmoid(batch.labelled(beta * weights * contrast(batch))).mean(dim=1)


def weighted_losses(batch: PreferenceBatch, beta: float, weights: Tensor) -> Tensor:
    """Return `(M,)`, row i: sum_j W[i, j] * -log sigmoid(beta * Delta[i, j])."""
    return (weights * -logsigmoid(batch.labelled(beta * contrast(batch)))).sum(dim=1)


@register_loss(
    "rpo_paired",
    paper=PAPER,
    grid={"beta": BETAS, "temperature": TEMPERATURES},
    needs=("reference", "prompt_embeddings"),
    couples_examples=True,
    start_value=lambda beta, temperature: math.log(2),
)
def rpo_paired(batch: PreferenceBatch, *, beta: Positive = 0.1, temperature: Positive = 0.5) -> Tensor:
    """RPO on pairs: contrasts between prompts, weighted inside the sigmoid by prompt similarity.

    L_i = mean_j -log sigmoid(beta * W_ij * Delta_ij), W = softmax_j(-(1 - cos(x_i, x_j)) / temperature)

    Source: Yin et al. 2024, embedding-distance weighting.

    Checked against: `trainers.py` of yinyueqin/relative-preference-optimization.

    Trap: W is inside the sigmoid and lowers beta. A batch of one pair is DPO; temperature towards 0 gives
    W = identity, towards infinity W = 1/M. Returns `(M,)`.
    """
    return weighted_logits(batch, beta, embedding(batch, temperature))


@register_loss(
    "rpo_unpaired",
    paper=PAPER,
    grid={"beta": BETAS, "temperature": TEMPERATURES},
    data="unpaired",
    needs=("reference", "prompt_embeddings"),
    couples_examples=True,
    start_value=lambda beta, temperature: math.log(2),
)
def rpo_unpaired(batch: PreferenceBatch, *, beta: Positive = 0.1, temperature: Positive = 0.5) -> Tensor:
    """RPO on unpaired data: M chosen responses against N rejected ones to other prompts.

    L_i = mean_j -log sigmoid(beta * W_ij * Delta_ij), W = softmax_j(-(1 - cos(x_i, x_j)) / temperature)

    Source: Yin et al. 2024, unpaired form; the softmax runs over the rejected responses of the batch.

    Checked against: `trainers.py` of yinyueqin/relative-preference-optimization.

    Trap: both classes must be present, which the backbone's batches guarantee; otherwise `ValueError` is raised (the
    authors' code silently skips the step). Returns `(M,)`.
    """
    if len(batch.chosen) == 0 or len(batch.rejected) == 0:
        raise ValueError("rpo_unpaired contrasts chosen with rejected responses, and one of the two classes is absent")
    return weighted_logits(batch, beta, embedding(batch, temperature))


@register_loss(
    "rpo_uniform",
    paper=PAPER,
    grid={"beta": BETAS},
    couples_examples=True,
    start_value=lambda beta: math.log(2),
)
def rpo_uniform(batch: PreferenceBatch, *, beta: Positive = 0.1) -> Tensor:
    """RPO on pairs with every weight 1: the paper's ablation without embeddings.

    L_i = mean_j -log sigmoid(beta * Delta_ij)

    Source: Yin et al. 2024, uniform weighting.

    Checked against: `trainers.py` of yinyueqin/relative-preference-optimization, whose weights are 1 and not 1/M.

    Returns `(M,)`.
    """
    return weighted_logits(batch, beta, 1.0)


@register_loss(
    "rpo_diagonal",
    paper=PAPER,
    grid={"beta": BETAS, "diagonal_weight": [0.5, 0.8]},
    couples_examples=True,
    start_value=lambda beta, diagonal_weight: math.log(2),
)
def rpo_diagonal(batch: PreferenceBatch, *, beta: Positive = 0.1, diagonal_weight: Share = 0.8) -> Tensor:
    """RPO on pairs with one weight for the pair itself and the rest split evenly among all other contrasts.

    L_i = a * -log sigmoid(beta * Delta_ii) + (1 - a) * mean_{j != i} -log sigmoid(beta * Delta_ij), a = diagonal_weight

    Source: Yin et al. 2024, diagonal weighting.

    Checked against: `trainers.py` of yinyueqin/relative-preference-optimization.

    Trap: here the weight multiplies losses, not logits. With a batch of one pair this is DPO.
    Returns `(M,)`.
    """
    return weighted_losses(batch, beta, diagonal_weights(batch, diagonal_weight))


@register_loss(
    "rpo",
    paper=PAPER,
    grid={"weighting": list(WEIGHTINGS), "beta": BETAS, "temperature": TEMPERATURES},
    choices={"weighting": WEIGHTINGS},
    needs=("reference", "prompt_embeddings"),
    couples_examples=True,
    start_value=lambda weighting, beta, temperature: math.log(2),
)
def rpo(
    batch: PreferenceBatch, *, weighting: str = "embedding", beta: Positive = 0.1, temperature: Positive = 0.5
) -> Tensor:
    """RPO on pairs with the weighting as a hyper-parameter, so that weightings can be compared in one grid.

    L_i = mean_j -log sigmoid(beta * W_ij * Delta_ij), or sum_j W_ij * -log sigmoid(beta * Delta_ij) for a weighting
    of losses

    Source: Yin et al. 2024; `permuted_embedding` and `uniform_mean` are controls of this project.

    Checked against: `rpo_paired`, `rpo_uniform` and `rpo_diagonal`, which are three of its values.

    Trap: only the embedding weightings use temperature, so a grid over both trains the same policy repeatedly for the
    others.
    Your own weighting: `losses.register_weighting`. Returns `(M,)`.
    """
    strategy = WEIGHTINGS.get(weighting)
    weighted = {"logits": weighted_logits, "losses": weighted_losses}[strategy.of]
    return weighted(batch, beta, strategy.weights(batch, temperature))
