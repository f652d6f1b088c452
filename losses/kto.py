"""Kahneman-Tversky Optimization without a reference point."""

import torch
from torch import Tensor

from losses.batch import PreferenceBatch
from losses.spec import register_loss


def _start_value(beta: float, desirable_weight: float, undesirable_weight: float) -> float | None:
    # with unequal weights the batch's value depends on how many of each class it holds
    return 0.5 * desirable_weight if desirable_weight == undesirable_weight else None


@register_loss(
    "kto_zero",
    paper="2402.01306",
    grid={"beta": [0.01, 0.05, 0.1], "desirable_weight": [1.0, 1.33], "undesirable_weight": [1.0]},
    data="unpaired",
    start_value=_start_value,
)
def kto_zero(
    batch: PreferenceBatch, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Tensor:
    """KTO with its reference point fixed at 0, which needs no mismatched pairs.

    L = lam_D * (1 - sigmoid(beta * s_w)) for a chosen, lam_U * (1 - sigmoid(-beta * s_l)) for a rejected response

    Source: Ethayarajh et al. 2024, eq. 8 with z0 = 0; lam_D = desirable_weight, lam_U = undesirable_weight.

    Checked against: TRL's KTO trainer, `apo_zero_unpaired`, with which it is identical at weights 1.

    Trap: choose the weights so that lam_D * n_D is 1 to 4/3 times lam_U * n_U. Returns `(M + N,)`.
    """
    chosen = desirable_weight * (-beta * batch.chosen.logratio).sigmoid()
    rejected = undesirable_weight * (beta * batch.rejected.logratio).sigmoid()
    return torch.cat([chosen, rejected])
