"""Hybrid Preference Optimization: DPO plus advantage-weighted likelihood of scored responses."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.batch import PreferenceBatch
from losses.bounds import Inside, NonNegative, Positive
from losses.spec import register_loss


@register_loss(
    "hpo",
    paper="2405.17956",
    grid={
        "beta": [0.05, 0.1, 0.3],
        "weight": [0.01, 0.1, 1.0],
        "temperature": [1.0],
        "max_weight": [20.0],
        "expectile": [0.7],
        "critic_coef": [0.01],
    },
    needs=("reference", "scores", "token_values", "stopped"),
    sign_exceptions="raises a rejected response where its weighted likelihood outweighs DPO",
)
def hpo(
    batch: PreferenceBatch,
    *,
    beta: Positive = 0.1,
    weight: NonNegative = 0.1,
    temperature: Positive = 1.0,
    max_weight: Positive = 20.0,
    expectile: Inside = 0.7,
    critic_coef: NonNegative = 0.01,
) -> Tensor:
    """DPO plus the likelihood of both responses, each weighted by its score's advantage over V(x).

    L = -log sigmoid(beta * Delta) + mean over both responses of (weight * w * -l / |y| + critic_coef * |tau - [A < 0]|
    * A^2), A = score - V(x), w = min(exp(A / temperature), max_weight) without gradient, tau = expectile

    Source: Badrinath et al. 2024, later renamed Unified Preference Optimization; the exact form is unverified. Its
    equations could not be read, and no official code was found. Its introduction and secondary descriptions combine a
    preference loss (KTO's, or DPO's as here) with an advantage-weighted likelihood of auxiliary rewards, offline,
    without sampling, clipping, importance sampling or bootstrapping. Our choices: w and its cap from AWR (1910.00177),
    the expectile regression of V from IQL (2110.06169), the likelihood per token, and all defaults.

    Checked against: `dpo`, which it is at weight = 0 and critic_coef = 0.

    Trap: V starts at 0 and is in the units of the scores: centre the scores near 0 and scale their spread to about one
    temperature, or all weights start at their cap. Returns `(n,)`.
    """
    now, rows = batch.require("stopped"), -logsigmoid(batch.labelled(beta * batch.logratio_margin))
    for side, constant in ((batch.chosen, now.chosen), (batch.rejected, now.rejected)):
        score, value = side.require("scores"), side.require("token_values")[:, 0]  # V(x): before the first token
        w = ((score - constant.token_values[:, 0]) / temperature).exp().clamp(max=max_weight)
        error = score - value
        critic = (expectile - (error < 0).to(error.dtype)).abs() * error**2
        rows = rows + 0.5 * (critic_coef * critic - weight * w * side.mean_policy)
    return rows
