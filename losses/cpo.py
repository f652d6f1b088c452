"""Contrastive Preference Optimization."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.batch import PreferenceBatch
from losses.bounds import NonNegative, Positive
from losses.spec import register_loss


@register_loss("cpo", paper="2401.08417", grid={"beta": [0.01, 0.05, 0.1], "alpha": [1.0]}, needs=())
def cpo(batch: PreferenceBatch, *, beta: Positive = 0.1, alpha: NonNegative = 1.0) -> Tensor:
    """DPO against a uniform reference, plus the NLL per token of the chosen response.

    L = -log sigmoid(beta * (l_w - l_l)) - alpha * l_w / |y_w|

    Source: Xu et al. 2024, eq. 3 and following.

    Checked against: `cpo_loss` of TRL's CPO trainer; its NLL averages over all tokens of a batch; here every response
    has the same weight.

    Trap: log-probs are summed in the first term and averaged in the second. HEAD of the authors' repository
    is a later method (ARPO), which scales l_l. Returns `(n,)`.
    """
    margin = batch.chosen.policy - batch.rejected.policy
    return -logsigmoid(batch.labelled(beta * margin)) - alpha * batch.chosen.mean_policy
