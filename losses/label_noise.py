"""DPO for labels of which a known fraction is flipped: the conservative and the unbiased correction."""

import math

from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.batch import PreferenceBatch
from losses.bounds import FlipRate, Positive
from losses.spec import register_loss

BETAS = [0.01, 0.05, 0.1, 0.3]


@register_loss(
    "cdpo",
    paper="ericmitchell.ai/cdpo.pdf",
    grid={"beta": BETAS, "label_smoothing": [0.1, 0.2]},
    start_value=lambda beta, label_smoothing: math.log(2),
    sign_exceptions="pulls the margin back once sigmoid(beta * Delta) exceeds 1 - label_smoothing",
)
def cdpo(batch: PreferenceBatch, *, beta: Positive = 0.1, label_smoothing: FlipRate = 0.1) -> Tensor:
    """Conservative DPO: cross-entropy to labels that are flipped with probability eps = label_smoothing.

    L = -(1 - eps) * log sigmoid(beta * Delta) - eps * log sigmoid(-beta * Delta)

    Source: Mitchell's note on cDPO.

    Checked against: `preference_loss(label_smoothing)` of eric-mitchell/direct-preference-optimization; OpenRLHF
    `DPOLoss`.

    Trap: TRL's `sigmoid` ignores label_smoothing at HEAD. HALOs and the RPO paper use 0.2. Returns `(n,)`.
    """
    logits = beta * batch.logratio_margin
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


@register_loss(
    "robust_dpo",
    paper="2403.00409",
    grid={"beta": BETAS, "label_smoothing": [0.1, 0.2]},
    start_value=lambda beta, label_smoothing: math.log(2),
)
def robust_dpo(batch: PreferenceBatch, *, beta: Positive = 0.1, label_smoothing: FlipRate = 0.1) -> Tensor:
    """DPO corrected to be unbiased when labels are flipped with probability eps = label_smoothing, below 1/2.

    L = (-(1 - eps) * log sigmoid(beta * Delta) + eps * log sigmoid(-beta * Delta)) / (1 - 2 * eps)

    Source: Chowdhury et al. 2024.

    Checked against: TRL `robust`.

    Trap: unbounded below, so negative values are expected. Returns `(n,)`.
    """
    logits = beta * batch.logratio_margin
    clean, flipped = -logsigmoid(logits), -logsigmoid(-logits)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)
