"""Kahneman-Tversky Optimization, with and without a reference point."""

import torch
from torch import Tensor

from losses.batch import PreferenceBatch
from losses.bounds import NonNegative, Positive
from losses.spec import register_loss

PAPER = "2402.01306"
GRID = {"beta": [0.01, 0.05, 0.1], "desirable_weight": [1.0, 1.33], "undesirable_weight": [1.0]}


def _start_value(beta: float, desirable_weight: float, undesirable_weight: float) -> float | None:
    # with unequal weights the value depends on the batch's class sizes
    return 0.5 * desirable_weight if desirable_weight == undesirable_weight else None


def _rows(batch: PreferenceBatch, point: Tensor | float, beta: float, desirable: float, undesirable: float) -> Tensor:
    """Return `(M + N,)`: how far chosen responses fall below the reference point, and rejected ones exceed it."""
    chosen = desirable * (-beta * (batch.chosen.logratio - point)).sigmoid()
    rejected = undesirable * (beta * (batch.rejected.logratio - point)).sigmoid()
    return torch.cat([chosen, rejected])


@register_loss(
    "kto", paper=PAPER, grid=GRID, data="unpaired", needs=("reference", "kl_pairs"), start_value=_start_value
)
def kto(
    batch: PreferenceBatch,
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> Tensor:
    """Compares each response with a reference point, an estimate of KL(policy || reference).

    L = lam_D * (1 - sigmoid(beta * (s_w - z))) for a chosen, lam_U * (1 - sigmoid(beta * (z - s_l))) for a rejected
    response, z = max(0, mean log-ratio of the mismatched pairs), without gradient

    Source: Ethayarajh et al. 2024, eq. 8; lam_D = desirable_weight, lam_U = undesirable_weight.

    Checked against: `KTOTrainer.loss` of ContextualAI/HALOs; TRL's KTO trainer, `kto`.

    Trap: a mismatched pair is a prompt with the response to another prompt, a derangement of the whole effective
    batch; a batch with a single prompt raises `ValueError`. Choose the weights so that lam_D * n_D is 1 to 4/3
    times lam_U * n_U. Each step costs a second forward pass. Returns `(M + N,)`.
    """
    ratios = batch.require("kl_pairs").logratio
    if len(ratios) == 0:
        raise ValueError("kto takes its reference point from mismatched pairs, and all of the batch answers one prompt")
    return _rows(batch, ratios.mean().clamp(min=0), beta, desirable_weight, undesirable_weight)


@register_loss("kto_zero", paper=PAPER, grid=GRID, data="unpaired", start_value=_start_value)
def kto_zero(
    batch: PreferenceBatch,
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> Tensor:
    """KTO with its reference point fixed at 0, which needs no mismatched pairs.

    L = lam_D * (1 - sigmoid(beta * s_w)) for a chosen, lam_U * (1 - sigmoid(-beta * s_l)) for a rejected response

    Source: Ethayarajh et al. 2024, eq. 8 with z0 = 0; lam_D = desirable_weight, lam_U = undesirable_weight.

    Checked against: TRL's KTO trainer, `apo_zero_unpaired`, with which it is identical at weights 1.

    Trap: choose the weights so that lam_D * n_D is 1 to 4/3 times lam_U * n_U. Returns `(M + N,)`.
    """
    return _rows(batch, 0.0, beta, desirable_weight, undesirable_weight)
