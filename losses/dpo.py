"""Direct Preference Optimization, and variants with length normalisation or an added NLL term."""

import math

from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.batch import PreferenceBatch
from losses.bounds import NonNegative, Positive
from losses.spec import register_loss


@register_loss(
    "dpo",
    paper="2305.18290",
    grid={"beta": [0.01, 0.05, 0.1, 0.3]},
    start_value=lambda beta: math.log(2),
)
def dpo(batch: PreferenceBatch, *, beta: Positive = 0.1) -> Tensor:
    """Logistic regression on the difference of log-ratios.

    L = -log sigmoid(beta * Delta)

    Source: Rafailov et al. 2023, eq. 7.

    Checked against: `preference_loss` of eric-mitchell/direct-preference-optimization; TRL `sigmoid`.

    Returns `(n,)`.
    """
    return -logsigmoid(batch.labelled(beta * batch.logratio_margin))


@register_loss(
    "dpo_norm",
    paper="2411.15124",
    grid={"beta": [2.0, 5.0, 10.0]},
    reduction="mean",
    start_value=lambda beta: math.log(2),
)
def dpo_norm(batch: PreferenceBatch, *, beta: Positive = 5.0) -> Tensor:
    """DPO on log-ratios per token: SimPO's normalisation, but with a reference and without a margin.

    L = -log sigmoid(beta * (s_w / |y_w| - s_l / |y_l|))

    Source: Lambert et al. 2024 (Tulu 3), the length-normalised DPO.

    Checked against: TRL `sigmoid_norm`.

    Trap: beta is per token and therefore about fifty times DPO's; the default is unverified. Returns `(n,)`.
    """
    return -logsigmoid(batch.labelled(beta * (batch.chosen.mean_logratio - batch.rejected.mean_logratio)))


@register_loss(
    "dpo_nll",
    paper="2404.19733",
    grid={"beta": [0.01, 0.05, 0.1, 0.3], "alpha": [0.005, 0.2, 1.0]},
)
def dpo_nll(batch: PreferenceBatch, *, beta: Positive = 0.1, alpha: NonNegative = 1.0) -> Tensor:
    """DPO plus the NLL per token of the chosen response, which keeps its likelihood from falling.

    L = -log sigmoid(beta * Delta) - alpha * l_w / |y_w|

    Source: Pang et al. 2024 (Iterative Reasoning Preference Optimization), version 3; alpha = 0.005 is the weight of
    Z. Liu et al. 2405.16436 (Regularized Preference Optimization).

    Checked against: TRL `["sigmoid", "sft"]`, which averages the NLL over all tokens of a batch; here every response
    has the same weight, so the value does not depend on how a batch is split.

    Trap: versions 1 and 2 of the paper weight the DPO term instead. Both papers' methods are abbreviated RPO, and
    neither is Relative PO. Returns `(n,)`.
    """
    return -logsigmoid(batch.labelled(beta * batch.logratio_margin)) - alpha * batch.chosen.mean_policy
