"""Simple Preference Optimization."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.batch import PreferenceBatch
from losses.bounds import NonNegative, Positive
from losses.spec import register_loss


@register_loss(
    "simpo",
    paper="2405.14734",
    grid={"beta": [2.0, 2.5, 4.0, 6.0, 8.0, 10.0], "gamma_ratio": [0.1, 0.3, 0.5, 0.8]},
    needs=(),
    reduction="mean",
)
def simpo(batch: PreferenceBatch, *, beta: Positive = 2.0, gamma_ratio: NonNegative = 0.5) -> Tensor:
    """Logistic loss on the difference of mean log-probs, less a target margin; no reference.

    L = -log sigmoid(beta * (l_w / |y_w| - l_l / |y_l| - gamma_ratio))

    Source: Meng et al. 2024, eq. 6, with gamma = beta * gamma_ratio.

    Checked against: `simpo_loss` of princeton-nlp/SimPO (gamma_beta_ratio); TRL's CPO trainer, `simpo`.

    Trap: the margin is a RATIO of beta, as in the authors' code. TRL's simpo_gamma is absolute, and its defaults
    (beta 0.1, gamma 0.5, cpo_alpha 1) are not SimPO's. Returns `(n,)`.
    """
    margin = batch.chosen.mean_policy - batch.rejected.mean_policy - gamma_ratio
    return -logsigmoid(batch.labelled(beta * margin))
