"""Efficient Exact Optimization, on preference pairs."""

import math
from typing import Annotated

from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.batch import PreferenceBatch
from losses.bounds import Bounds, Positive
from losses.spec import register_loss


def _start_value(beta: float, label_smoothing: float) -> float:
    return math.log(0.5) - 0.5 * (math.log(1 - label_smoothing) + math.log(label_smoothing))


@register_loss(
    "exo",
    paper="2402.00856",
    grid={"beta": [0.1, 0.5], "label_smoothing": [0.001, 0.01, 0.1]},
    start_value=_start_value,
    sign_exceptions="pulls the margin back once sigmoid(beta * Delta) exceeds 1 - label_smoothing",
)
def exo(
    batch: PreferenceBatch,
    *,
    beta: Positive = 0.5,
    label_smoothing: Annotated[float, Bounds(above=0, below=0.5)] = 0.001,
) -> Tensor:
    """EXO-pref: the reverse KL from the policy's preference between two responses to the smoothed label.

    L = KL(Bernoulli(sigmoid(beta * Delta)) || Bernoulli(1 - eps)), eps = label_smoothing

    Source: Ji et al. 2024, eq. 16; DPO is the KL in the other direction.

    Checked against: TRL `exo_pair`. `exact_loss` of the authors' repository uses log-targets 0 and -10, which are not
    normalised.

    Trap: eps must be in (0, 1/2); at 0 the loss would be infinite. Returns `(n,)`.
    """
    logits = beta * batch.logratio_margin
    kept = logits.sigmoid() * (logsigmoid(logits) - math.log1p(-label_smoothing))
    flipped = (-logits).sigmoid() * (logsigmoid(-logits) - math.log(label_smoothing))
    return kept + flipped
