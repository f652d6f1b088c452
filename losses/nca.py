"""Noise Contrastive Alignment, on preference pairs."""

import math

from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.batch import PreferenceBatch
from losses.bounds import Positive
from losses.spec import register_loss


@register_loss(
    "nca",
    paper="2402.05369",
    grid={"beta": [0.01, 0.05, 0.1]},
    start_value=lambda beta: 2 * math.log(2),
    sign_exceptions="pulls the chosen reward beta * s_w back once it exceeds log 2",
)
def nca(batch: PreferenceBatch, *, beta: Positive = 0.01) -> Tensor:
    """Contrasts each response with noise: unlike DPO it also constrains the absolute likelihood of the chosen one.

    L = -log sigmoid(r_w) - log sigmoid(-r_w) / 2 - log sigmoid(-r_l) / 2, r = beta * s

    Source: Chen et al. 2024, the form for pairs.

    Checked against: TRL `nca_pair`; `preference_trainer.py` of the authors' repository.

    Trap: TRL's `bco_pair` is not BCO but this loss with other weights. Returns `(n,)`.
    """
    chosen, rejected = beta * batch.chosen.logratio, beta * batch.rejected.logratio
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)
