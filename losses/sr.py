"""Self-refinement: DPO and IPO whose target margin depends on the policy's own assessment of the two responses."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.batch import PreferenceBatch
from losses.bounds import NonNegative, Positive
from losses.spec import register_loss

PAPER = "2405.21040"
NEEDS = ("reference", "augmented")


def _refinement(batch: PreferenceBatch) -> Tensor:
    """Return `(n,)` Delta_pi: log-prob of chosen minus rejected under a prompt that asks for the best response."""
    return batch.chosen.require("augmented") - batch.rejected.require("augmented")


@register_loss("sr_dpo", paper=PAPER, grid={"beta": [0.05, 0.1, 0.3], "lam": [0.001, 0.01, 0.1]}, needs=NEEDS)
def sr_dpo(batch: PreferenceBatch, *, beta: Positive = 0.1, lam: NonNegative = 0.01) -> Tensor:
    """DPO whose target margin grows with the policy's own margin, without gradient, under an evaluator's prompt p.

    L = -log sigmoid(beta * Delta - lam * Delta_pi), Delta_pi = log pi(y_w | p + x) - log pi(y_l | p + x)

    Source: Yu et al. 2024, Sr-DPO; unverified: the sign of the term, that it uses only the policy and sums over tokens,
    and lam. The paper's equations could not be read, and no official code was found.

    Checked against: `dpo`, which it equals at lam = 0.

    Trap: each step costs a second forward pass, on prompts with a prefix. Returns `(n,)`.
    """
    return -logsigmoid(batch.labelled(beta * batch.logratio_margin - lam * _refinement(batch)))


@register_loss(
    "sr_ipo",
    paper=PAPER,
    grid={"tau": [0.01, 0.1, 0.5], "lam": [0.001, 0.01, 0.1]},
    needs=NEEDS,
    sign_exceptions="pulls the margin back once it exceeds its target",
)
def sr_ipo(batch: PreferenceBatch, *, tau: Positive = 0.1, lam: NonNegative = 0.01) -> Tensor:
    """IPO whose target margin grows with the policy's own margin, without gradient, under an evaluator's prompt p.

    L = (Delta - lam * Delta_pi - 1 / (2 tau))^2, Delta_pi = log pi(y_w | p + x) - log pi(y_l | p + x)

    Source: Yu et al. 2024, Sr-IPO, on sums as in `ipo_sum`; unverified in the same respects as `sr_dpo`.

    Checked against: `ipo_sum`, which it equals at lam = 0.

    Trap: each step costs a second forward pass, on prompts with a prefix. Returns `(n,)`.
    """
    return (batch.labelled(batch.logratio_margin - lam * _refinement(batch)) - 1 / (2 * tau)) ** 2
