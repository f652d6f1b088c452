"""Direct Preference Optimization."""

import math

from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.batch import PreferenceBatch
from losses.spec import register_loss


@register_loss(
    "dpo",
    paper="2305.18290",
    grid={"beta": [0.01, 0.05, 0.1, 0.3]},
    start_value=lambda beta: math.log(2),
)
def dpo(batch: PreferenceBatch, *, beta: float = 0.1) -> Tensor:
    """Logistic regression on the difference of log-ratios: -log sigmoid(beta * Delta).

    Delta is the chosen minus the rejected log-ratio, summed over tokens. Rafailov et al. 2023, eq. 7; formula
    checked against `preference_loss` of eric-mitchell/direct-preference-optimization. Returns `(n,)`.
    """
    return -logsigmoid(beta * batch.logratio_margin)
