"""Identity Preference Optimization, in the two conventions used by published results."""

from torch import Tensor

from losses.batch import PreferenceBatch
from losses.bounds import Positive
from losses.spec import register_loss

TAUS = [0.01, 0.1, 0.5, 1.0]
BEYOND_TARGET = "pulls the margin back once it exceeds its target 1 / (2 tau)"


def _start_value(tau: float) -> float:
    return 1 / (2 * tau) ** 2


@register_loss(
    "ipo",
    paper="2310.12036",
    grid={"tau": TAUS},
    reduction="mean",
    start_value=_start_value,
    sign_exceptions=BEYOND_TARGET,
)
def ipo(batch: PreferenceBatch, *, tau: Positive = 0.1) -> Tensor:
    """Squared distance of the per-token log-ratio margin to its target.

    L = (s_w / |y_w| - s_l / |y_l| - 1 / (2 tau))^2

    Source: Azar et al. 2023, eq. 17, on log-ratios averaged over tokens.

    Checked against: TRL `ipo`, whose comment reports this form as confirmed by the authors.

    Trap: the target is in nats per token, so `tau` has a different scale than in `ipo_sum`. Returns `(n,)`.
    """
    return (batch.labelled(batch.chosen.mean_logratio - batch.rejected.mean_logratio) - 1 / (2 * tau)) ** 2


@register_loss(
    "ipo_sum",
    paper="2310.12036",
    grid={"tau": TAUS},
    start_value=_start_value,
    sign_exceptions=BEYOND_TARGET,
)
def ipo_sum(batch: PreferenceBatch, *, tau: Positive = 0.1) -> Tensor:
    """Squared distance of the summed log-ratio margin to its target.

    L = (Delta - 1 / (2 tau))^2

    Source: Azar et al. 2023, eq. 17, as written.

    Checked against: the DPO and RPO repositories, which use this convention (5 nats per completion at tau = 0.1).

    Returns `(n,)`.
    """
    return (batch.labelled(batch.logratio_margin) - 1 / (2 * tau)) ** 2
