"""Odds Ratio Preference Optimization."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.batch import PreferenceBatch
from losses.bounds import NonNegative
from losses.numerics import log_odds
from losses.spec import register_loss


@register_loss(
    "orpo",
    paper="2403.07691",
    grid={"lam": [0.1, 0.5, 1.0, 2.0]},
    needs=(),
    reduction="mean",
)
def orpo(batch: PreferenceBatch, *, lam: NonNegative = 0.1) -> Tensor:
    """The chosen response's NLL plus a penalty on the odds ratio of the two responses; no reference.

    L = -lbar_w - lam * log sigmoid(odds_w - odds_l), lbar = l / |y|, odds = lbar - log(1 - exp(lbar))

    Source: Hong et al. 2024, eq. 6 and 7.

    Checked against: `odds_ratio_loss` of TRL's ORPO trainer; its NLL averages over all tokens of a batch; here every
    response has the same weight.

    Trap: the mean log-prob, not the sum, enters the odds. The authors' code includes the prompt in the NLL by
    default; here the NLL covers the response only. Returns `(n,)`.
    """
    chosen, rejected = batch.chosen.mean_policy, batch.rejected.mean_policy
    return -chosen - lam * logsigmoid(batch.labelled(log_odds(chosen) - log_odds(rejected)))
