"""Length-regularised DPO."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.batch import PreferenceBatch
from losses.bounds import NonNegative, Positive
from losses.spec import register_loss


@register_loss(
    "r_dpo",
    paper="2403.19159",
    grid={"beta": [0.01, 0.05, 0.1], "alpha": [0.005, 0.05, 0.1, 0.5, 1.0]},
)
def r_dpo(batch: PreferenceBatch, *, beta: Positive = 0.1, alpha: NonNegative = 0.05) -> Tensor:
    """DPO in which a longer chosen response needs a smaller log-ratio margin.

    L = -log sigmoid(beta * Delta + alpha * (|y_w| - |y_l|))

    Source: Park et al. 2024, derived from maximising r - alpha |y| - beta KL: the optimal policy's log-ratio is
    (r - alpha |y|) / beta plus a constant, so r_w - r_l = beta * Delta + alpha * (|y_w| - |y_l|).

    Checked against: the derivation alone; there is no official code, and the published scale of alpha is unverified.

    Trap: the SimPO paper's table prints a MINUS, which would push length up. Returns `(n,)`.
    """
    longer = batch.chosen.lengths - batch.rejected.lengths
    return -logsigmoid(batch.labelled(beta * batch.logratio_margin + alpha * longer))
