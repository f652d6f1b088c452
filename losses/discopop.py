"""Discovered Preference Optimization: a loss that a language model proposed."""

import math

from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.batch import PreferenceBatch
from losses.bounds import Inside, Positive
from losses.spec import register_loss


@register_loss(
    "discopop",
    paper="2406.08414",
    grid={"beta": [0.01, 0.05, 0.1], "tau": [0.05]},
    start_value=lambda beta, tau: 0.5 * math.log(2) + 0.5,
    sign_exceptions="not monotone: it rises with beta * Delta from about -0.12 to +0.07 (at tau = 0.05)",
)
def discopop(batch: PreferenceBatch, *, beta: Positive = 0.05, tau: Inside = 0.05) -> Tensor:
    """Log-ratio modulated loss (LRML): the logistic loss for negative margins, the exponential loss for positive ones.

    L = (1 - g) * -log sigmoid(rho) + g * exp(-rho), rho = beta * Delta, g = sigmoid(rho / tau)

    Source: Lu et al. 2024, eq. 5.

    Checked against: TRL `discopop`; `log_ratio_modulated_loss` of SakanaAI/DiscoPOP.

    Trap: written as above, g * exp(-rho) is 0 * infinity at very negative margins; here it is a single
    exponential. Returns `(n,)`.
    """
    rho = batch.labelled(beta * batch.logratio_margin)
    behind = (-rho / tau).sigmoid() * -logsigmoid(rho)
    ahead = (logsigmoid(rho / tau) - rho).exp()
    return behind + ahead
