"""Relative Preference Optimization (Yin et al. 2024): every chosen response against every rejected one.

The contrast covers the whole effective batch: `Delta[i, j] = s_w[i] - s_l[j]`, the log-ratio of chosen response i
minus that of rejected response j. The four variants differ in the weights only. Formulas checked against
`trainers.py` of yinyueqin/relative-preference-optimization, without its defects: embeddings and softmax stay in
fp32, and the contrast is that of the effective batch, not of one device's share of it.

For the prompts' partition terms to cancel, i and j must share their prompt; off the diagonal they do not, and the
paper drops them by argument. The weights stand inside the sigmoid, so that they also lower beta: on the diagonal
the effective beta is `beta * W[i, i]`. DPO at `beta * mean(W[i, i])` is the control for that.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from losses.batch import PreferenceBatch
from losses.spec import register_loss

PAPER = "2402.10958"
BETAS = [0.01, 0.05, 0.1, 0.3]
TEMPERATURES = [0.25, 0.5, 0.75]


def embedding_weights(chosen: Tensor, rejected: Tensor, temperature: float) -> Tensor:
    """Return `(M, N)` weights: softmax over the rejected of -(cosine distance of the prompts) / temperature.

    `chosen` is `(M, d)` and `rejected` `(N, d)`, prompt embeddings of any norm; each row sums to 1.
    """
    cosine = normalize(chosen, dim=1) @ normalize(rejected, dim=1).T
    return torch.softmax((cosine - 1) / temperature, dim=1)


def contrast(batch: PreferenceBatch) -> Tensor:
    """Return `(M, N)`: the log-ratio of chosen i minus that of rejected j, in nats."""
    return batch.chosen.logratio[:, None] - batch.rejected.logratio[None, :]


def _embedding_weighted(batch: PreferenceBatch, beta: float, temperature: float) -> Tensor:
    weights = embedding_weights(
        batch.chosen.require("prompt_embeddings"), batch.rejected.require("prompt_embeddings"), temperature
    )
    return -logsigmoid(beta * weights * contrast(batch)).mean(dim=1)


@register_loss(
    "rpo_paired",
    paper=PAPER,
    grid={"beta": BETAS, "temperature": TEMPERATURES},
    needs=("reference", "prompt_embeddings"),
    couples_examples=True,
    start_value=lambda beta, temperature: math.log(2),
)
def rpo_paired(batch: PreferenceBatch, *, beta: float = 0.1, temperature: float = 0.5) -> Tensor:
    """RPO on pairs: contrasts between prompts, weighted inside the sigmoid by prompt similarity.

    row i: mean_j -log sigmoid(beta * W[i, j] * Delta[i, j]). A batch of one pair is DPO; temperature towards 0
    gives W = identity, towards infinity W = 1/M. Returns `(M,)`.
    """
    return _embedding_weighted(batch, beta, temperature)


@register_loss(
    "rpo_unpaired",
    paper=PAPER,
    grid={"beta": BETAS, "temperature": TEMPERATURES},
    data="unpaired",
    needs=("reference", "prompt_embeddings"),
    couples_examples=True,
    start_value=lambda beta, temperature: math.log(2),
)
def rpo_unpaired(batch: PreferenceBatch, *, beta: float = 0.1, temperature: float = 0.5) -> Tensor:
    """RPO on unpaired data: M chosen responses against N rejected ones to other prompts.

    As `rpo_paired`, with the softmax over the rejected responses of the batch. Both classes must be present: the
    batches of the backbone see to it, and a batch without one of them raises `ValueError`. Returns `(M,)`.
    """
    if len(batch.chosen) == 0 or len(batch.rejected) == 0:
        raise ValueError("rpo_unpaired contrasts chosen with rejected responses, and one of the two classes is absent")
    return _embedding_weighted(batch, beta, temperature)


@register_loss(
    "rpo_uniform",
    paper=PAPER,
    grid={"beta": BETAS},
    couples_examples=True,
    start_value=lambda beta: math.log(2),
)
def rpo_uniform(batch: PreferenceBatch, *, beta: float = 0.1) -> Tensor:
    """RPO on pairs with every weight 1 (not 1/M): the paper's ablation without embeddings.

    row i: mean_j -log sigmoid(beta * Delta[i, j]). Returns `(M,)`.
    """
    return -logsigmoid(beta * contrast(batch)).mean(dim=1)


@register_loss(
    "rpo_diagonal",
    paper=PAPER,
    grid={"beta": BETAS, "diagonal_weight": [0.5, 0.8]},
    couples_examples=True,
    start_value=lambda beta, diagonal_weight: math.log(2),
)
def rpo_diagonal(batch: PreferenceBatch, *, beta: float = 0.1, diagonal_weight: float = 0.8) -> Tensor:
    """RPO on pairs with one weight for the pair itself and the rest shared by all other contrasts.

    row i: a * loss[i, i] + (1 - a) * mean_{j != i} loss[i, j], with loss = -log sigmoid(beta * Delta): here the
    weight multiplies losses, not logits. A batch of one pair has no other contrast and is DPO. Returns `(M,)`.
    """
    losses = -logsigmoid(beta * contrast(batch))
    own = losses.diagonal()
    if len(own) == 1:
        return own
    others = (losses.sum(dim=1) - own) / (len(own) - 1)
    return diagonal_weight * own + (1 - diagonal_weight) * others
