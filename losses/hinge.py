"""Hinge losses: RSO's on normalised log-ratios, and SLiC-HF's, which has no reference."""

from torch import Tensor, relu

from losses.batch import PreferenceBatch
from losses.bounds import NonNegative, Positive
from losses.spec import register_loss


@register_loss(
    "hinge",
    paper="2309.06657",
    grid={"gamma": [0.01, 0.05, 0.1]},
    start_value=lambda gamma: 1.0,
)
def hinge(batch: PreferenceBatch, *, gamma: Positive = 0.05) -> Tensor:
    """RSO's hinge-norm: a support-vector machine on the log-ratio margin, 1 / gamma nats wide.

    L = max(0, 1 - gamma * Delta)

    Source: Liu et al. 2023 (Statistical Rejection Sampling Optimization), hinge-norm.

    Checked against: TRL `hinge`, where gamma is called beta.

    Returns `(n,)`.
    """
    return relu(1 - batch.labelled(gamma * batch.logratio_margin))


@register_loss(
    "slic",
    paper="2305.10425",
    grid={"delta": [0.1, 0.5, 1.0, 2.0], "lam": [0.1, 0.5, 1.0, 10.0]},
    needs=(),
)
def slic(batch: PreferenceBatch, *, delta: NonNegative = 1.0, lam: NonNegative = 0.1) -> Tensor:
    """SLiC-HF: a hinge on the policy's own log-probs, regularised towards the chosen response.

    L = max(0, delta - l_w + l_l) - lam * l_w

    Source: Zhao et al. 2023. The second term's target is the chosen response here; the paper also takes the SFT text.

    Checked against: `SLiCTrainer` of the RPO repository.

    Trap: log-probs are summed over tokens, so long responses dominate. HALOs' HEAD (`SLiCTrainer`) adds the hinge of a
    sequence to the NLL of each token. Returns `(n,)`.
    """
    return relu(delta - batch.labelled(batch.chosen.policy - batch.rejected.policy)) - lam * batch.chosen.policy
