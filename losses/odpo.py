"""DPO with an offset."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.batch import PreferenceBatch
from losses.bounds import NonNegative, Positive
from losses.spec import register_loss


@register_loss(
    "odpo",
    paper="2402.10571",
    grid={"beta": [0.05, 0.5, 0.7], "alpha": [0.5, 1.0]},
    needs=("reference", "scores"),
)
def odpo(batch: PreferenceBatch, *, beta: Positive = 0.5, alpha: NonNegative = 1.0) -> Tensor:
    """DPO with a target margin that grows with the difference of the responses' scores r.

    L = -log sigmoid(beta * Delta - alpha * log(r_w - r_l))

    Source: Amini et al. 2024, with f = log of the score difference.

    Checked against: `preference_loss` of rycolab/odpo.

    Trap: every chosen response must score above its rejected one, or `ValueError` is raised. A difference
    below 1 lowers the margin. alpha = 0 is DPO. Returns `(n,)`.
    """
    gap = batch.chosen.require("scores") - batch.rejected.require("scores")
    if not (gap > 0).all():
        raise ValueError(
            f"odpo takes the log of score(chosen) - score(rejected), and {int((~(gap > 0)).sum())} of {len(gap)} pairs "
            "do not have it above 0; leave them out of the data"
        )
    return -logsigmoid(batch.labelled(beta * batch.logratio_margin - alpha * gap.log()))
