"""Self-Play Preference Optimization, with hard labels."""

from torch import Tensor

from losses.batch import PreferenceBatch
from losses.bounds import Positive
from losses.spec import register_loss


@register_loss(
    "sppo",
    paper="2405.00675",
    grid={"beta": [0.001, 0.01, 0.1]},
    start_value=lambda beta: 0.5 / beta**2,
    sign_exceptions="pulls a log-ratio back once it is beyond its target of +-1 / (2 beta)",
)
def sppo(batch: PreferenceBatch, *, beta: Positive = 0.001) -> Tensor:
    """Squared distance of each log-ratio to its target: the win probability, less 1/2, over beta.

    L = (s_w - 1 / (2 beta))^2 + (s_l + 1 / (2 beta))^2

    Source: Wu et al. 2024, eq. 4.7, with win probability 1 for the chosen and 0 for the rejected response.

    Checked against: TRL `sppo_hard`. `sppo_loss` of uclaml/SPPO halves the sum.

    Trap: the paper is iterative and on-policy, with win probabilities from a judge model; this is its loss on fixed
    pairs. At the default beta the targets are +-500 nats, so training relies on gradient clipping. Returns `(n,)`.
    """
    return (batch.chosen.logratio - 0.5 / beta) ** 2 + (batch.rejected.logratio + 0.5 / beta) ** 2
