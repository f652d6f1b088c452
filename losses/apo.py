"""Anchored Preference Optimization: which way each likelihood moves is part of the objective."""

import torch
from torch import Tensor

from losses.batch import PreferenceBatch
from losses.bounds import Positive
from losses.spec import register_loss

PAPER = "2408.06266"
BETAS = [0.01, 0.05, 0.1, 0.3]


@register_loss("apo_zero", paper=PAPER, grid={"beta": BETAS}, start_value=lambda beta: 1.0)
def apo_zero(batch: PreferenceBatch, *, beta: Positive = 0.1) -> Tensor:
    """Chosen up, rejected down: for data whose chosen responses are better than the policy's own.

    L = 1 - sigmoid(beta * s_w) + sigmoid(beta * s_l)

    Source: D'Oosterlinck et al. 2024, eq. 7.

    Checked against: TRL `apo_zero`.

    Returns `(n,)`.
    """
    return (-beta * batch.chosen.logratio).sigmoid() + (beta * batch.rejected.logratio).sigmoid()


@register_loss(
    "apo_down",
    paper=PAPER,
    grid={"beta": BETAS},
    start_value=lambda beta: 1.0,
    sign_exceptions="lowers the chosen response's likelihood on purpose, and the rejected one's more",
)
def apo_down(batch: PreferenceBatch, *, beta: Positive = 0.1) -> Tensor:
    """Both down, the rejected more: for data whose chosen responses are worse than the policy's own.

    L = sigmoid(beta * s_w) + 1 - sigmoid(beta * Delta)

    Source: D'Oosterlinck et al. 2024, eq. 8.

    Checked against: TRL `apo_down`.

    Returns `(n,)`.
    """
    return (beta * batch.chosen.logratio).sigmoid() + (-beta * batch.logratio_margin).sigmoid()


@register_loss("apo_zero_unpaired", paper=PAPER, grid={"beta": BETAS}, data="unpaired", start_value=lambda beta: 0.5)
def apo_zero_unpaired(batch: PreferenceBatch, *, beta: Positive = 0.1) -> Tensor:
    """`apo_zero` on unpaired data.

    L = 1 - sigmoid(beta * s_w) for a chosen, sigmoid(beta * s_l) for a rejected response

    Source: D'Oosterlinck et al. 2024, eq. 7, one response at a time.

    Checked against: TRL's KTO trainer, `apo_zero_unpaired`.

    Trap: 1 - sigmoid(-x) = sigmoid(x), so this is `kto_zero` with weights of 1. Returns `(M + N,)`.
    """
    return torch.cat([(-beta * batch.chosen.logratio).sigmoid(), (beta * batch.rejected.logratio).sigmoid()])
