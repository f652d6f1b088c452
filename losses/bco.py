"""Binary Classifier Optimization, with and without density-ratio weights for prompts with one kind of response."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.batch import PreferenceBatch
from losses.bounds import Positive
from losses.spec import register_loss

PAPER = "2404.04656"
NEEDS = ("reference", "history", "stopped")


def _rewards(batch: PreferenceBatch, beta: float) -> tuple[Tensor, Tensor]:
    """Return the rewards beta * s of chosen and rejected responses, less the running mean of all rewards so far."""
    history, now = batch.require("history"), batch.require("stopped")
    ratios = torch.cat([now.chosen.logratio, now.rejected.logratio])
    shift = beta * (history.mean * history.count + ratios.sum()) / (history.count + len(ratios))
    return beta * batch.chosen.logratio - shift, beta * batch.rejected.logratio - shift


@register_loss(
    "bco",
    paper=PAPER,
    grid={"beta": [0.01, 0.05, 0.1]},
    data="unpaired",
    needs=NEEDS,
    couples_examples=True,
    start_value=lambda beta: math.log(2),
)
def bco(batch: PreferenceBatch, *, beta: Positive = 0.1) -> Tensor:
    """A binary classifier of chosen against rejected responses whose logit is the reward less its running mean.

    L = -log sigmoid(beta * s_w - delta) for a chosen, -log sigmoid(delta - beta * s_l) for a rejected response,
    delta = mean of beta * s over all responses up to and including this batch, without gradient

    Source: Jung et al. 2024.

    Checked against: TRL `bco_loss` of its BCO trainer, with weights of 1.

    Trap: TRL's `bco_pair` has no delta and is a relative of `nca`. Returns `(M + N,)`.
    """
    chosen, rejected = _rewards(batch, beta)
    return torch.cat([-logsigmoid(chosen), -logsigmoid(-rejected)])


@register_loss(
    "bco_udm",
    paper=PAPER,
    grid={"beta": [0.01, 0.05, 0.1], "min_ratio": [0.5], "max_ratio": [10.0]},
    data="unpaired",
    needs=(*NEEDS, "density_ratios"),
    couples_examples=True,
)
def bco_udm(
    batch: PreferenceBatch, *, beta: Positive = 0.1, min_ratio: Positive = 0.5, max_ratio: Positive = 10.0
) -> Tensor:
    """BCO with underlying distribution matching: rejected responses are reweighted to the prompts of the chosen ones.

    L = bco for a chosen, w * bco for a rejected response, w = clip(p(chosen | x) / p(rejected | x), min, max)

    Source: Jung et al. 2024, UDM; p is a logistic classifier on prompt embeddings with balanced classes.

    Checked against: TRL's BCO trainer, `_get_udm_weight`.

    Trap: in paired data every prompt belongs to both classes, so the ratio is 1 and this is `bco`. It is meant for
    data whose two classes have different prompts. Returns `(M + N,)`.
    """
    chosen, rejected = _rewards(batch, beta)
    weights = batch.rejected.require("density_ratios").clamp(min_ratio, max_ratio)
    return torch.cat([-logsigmoid(chosen), weights * -logsigmoid(-rejected)])
