"""Alignment via Optimal Transport: the distribution of chosen rewards dominates as a whole, not pair by pair."""

import math

from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.batch import PreferenceBatch
from losses.bounds import Positive
from losses.spec import register_loss

PAPER = "2406.05882"
BETAS = [0.01, 0.05, 0.1]


@register_loss("aot", paper=PAPER, grid={"beta": BETAS}, couples_examples=True, start_value=lambda beta: math.log(2))
def aot(batch: PreferenceBatch, *, beta: Positive = 0.01) -> Tensor:
    """AOT on pairs: the sorted margins of the policy against the sorted margins of the reference.

    L_k = -log sigmoid(beta * (sort(l_w - l_l)_k - sort(ref_w - ref_l)_k)), one row for each rank k of the batch

    Source: Melnyk et al. 2024, the paired form with the logistic loss.

    Checked against: TRL `aot` at label_smoothing 0.

    Trap: TRL 0.12 used the name `aot_pair` for what is now `aot_unpaired`. TRL sorts one device's share of the
    batch; here the effective batch is sorted. A row belongs to a rank, not to a pair. Returns `(n,)`.
    """
    policy = (batch.chosen.policy - batch.rejected.policy).sort().values
    reference = (batch.chosen.require("reference") - batch.rejected.require("reference")).sort().values
    return -logsigmoid(batch.labelled(beta * (policy - reference)))


@register_loss(
    "aot_unpaired",
    paper=PAPER,
    grid={"beta": BETAS},
    data="unpaired",
    couples_examples=True,
    start_value=lambda beta: math.log(2),
)
def aot_unpaired(batch: PreferenceBatch, *, beta: Positive = 0.01) -> Tensor:
    """AOT on unpaired data: the sorted log-ratios of the chosen against those of the rejected responses.

    L_k = -log sigmoid(beta * (sort(s_w)_k - sort(s_l)_k)), one row for each rank k

    Source: Melnyk et al. 2024, the unpaired form with the logistic loss.

    Checked against: TRL `aot_unpaired` at label_smoothing 0, for classes of the same size.

    Trap: if the classes differ in size, k runs over the least common multiple of the sizes, and each response has as
    many ranks as the others of its class. That is the paper's integral over quantiles, and no response counts double
    because rounding has put it before another. Raises `ValueError` if a class is absent. Returns `(lcm(M, N),)`.
    """
    if len(batch.chosen) == 0 or len(batch.rejected) == 0:
        raise ValueError("aot_unpaired compares two distributions, and one of the two classes is absent")
    ranks = math.lcm(len(batch.chosen), len(batch.rejected))
    chosen, rejected = (
        side.logratio.sort().values.repeat_interleave(ranks // len(side)) for side in (batch.chosen, batch.rejected)
    )
    return -logsigmoid(batch.labelled(beta * (chosen - rejected)))
