"""Identity Preference Optimization, in the two conventions that published results use."""

from torch import Tensor

from losses.batch import PreferenceBatch
from losses.spec import register_loss


def _start_value(tau: float) -> float:
    return 1 / (2 * tau) ** 2


@register_loss(
    "ipo",
    paper="2310.12036",
    grid={"tau": [0.01, 0.1, 0.5, 1.0]},
    reduction="mean",
    start_value=_start_value,
)
def ipo(batch: PreferenceBatch, *, tau: float = 0.1) -> Tensor:
    """Squared distance of the per-token log-ratio margin to 1 / (2 tau).

    Azar et al. 2023, eq. 17, on log-ratios averaged over tokens: the form that TRL uses and reports as confirmed
    by the authors. The target is in nats per token, so `tau` is on another scale than in `ipo_sum`. Returns `(n,)`.
    """
    return (batch.chosen.mean_logratio - batch.rejected.mean_logratio - 1 / (2 * tau)) ** 2


@register_loss(
    "ipo_sum",
    paper="2310.12036",
    grid={"tau": [0.01, 0.1, 0.5, 1.0]},
    start_value=_start_value,
)
def ipo_sum(batch: PreferenceBatch, *, tau: float = 0.1) -> Tensor:
    """Squared distance of the summed log-ratio margin to 1 / (2 tau).

    Azar et al. 2023, eq. 17, as written; the convention of the DPO and RPO repositories (a target of 5 nats per
    completion at tau = 0.1). Returns `(n,)`.
    """
    return (batch.logratio_margin - 1 / (2 * tau)) ** 2
