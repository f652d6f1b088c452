"""Reward-aware Preference Optimization (NVIDIA): the margin should match the difference of the responses' scores.

The papers also call it RPO. It is unrelated to Relative Preference Optimization (`rpo_*` in rpo.py).
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.batch import PreferenceBatch
from losses.bounds import Positive
from losses.spec import register_loss

PAPER = "2502.00203"
GRID = {"beta": [0.05, 0.1, 0.2], "eta": [0.5, 1.0, 2.0]}
NEEDS = ("reference", "scores")
BEYOND_TARGET = "pulls the margin back once beta * Delta exceeds eta * (r_w - r_l)"


def _margins(batch: PreferenceBatch, beta: float, eta: float) -> tuple[Tensor, Tensor]:
    """Return `(n,)` the implicit reward margin h = beta * Delta, and the target margin d = eta * (r_w - r_l)."""
    return beta * batch.logratio_margin, eta * (batch.chosen.require("scores") - batch.rejected.require("scores"))


def _bernoulli_kl(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(Bernoulli(sigmoid(p)) || Bernoulli(sigmoid(q))) for logits p and q."""
    return p.sigmoid() * (logsigmoid(p) - logsigmoid(q)) + (-p).sigmoid() * (logsigmoid(-p) - logsigmoid(-q))


@register_loss("rpo_reward_sq", paper=PAPER, grid=GRID, needs=NEEDS, sign_exceptions=BEYOND_TARGET)
def rpo_reward_sq(batch: PreferenceBatch, *, beta: Positive = 0.2, eta: Positive = 1.0) -> Tensor:
    """Reward-aware PO, squared distance.

    L = (h - d)^2, h = beta * Delta, d = eta * (r_w - r_l)

    Source: Nemotron-4 (2406.11704) and Sun et al. 2025; equation numbers unverified.

    Checked against: `loss_func` of NeMo-Aligner's megatron_gpt_dpo_model.py, `rpo_sq`.

    Returns `(n,)`.
    """
    implicit, wanted = _margins(batch, beta, eta)
    return (implicit - wanted) ** 2


@register_loss("rpo_reward_fwd_kl", paper=PAPER, grid=GRID, needs=NEEDS, sign_exceptions=BEYOND_TARGET)
def rpo_reward_fwd_kl(batch: PreferenceBatch, *, beta: Positive = 0.2, eta: Positive = 1.0) -> Tensor:
    """Reward-aware PO, the KL from the policy's preference to the scores'.

    L = KL(Bernoulli(sigmoid(h)) || Bernoulli(sigmoid(d))), h = beta * Delta, d = eta * (r_w - r_l)

    Source: Nemotron-4 (2406.11704) and Sun et al. 2025; equation numbers unverified.

    Checked against: `loss_func` of NeMo-Aligner's megatron_gpt_dpo_model.py, `rpo_fwd_kl`, whose naming this keeps.

    Returns `(n,)`.
    """
    implicit, wanted = _margins(batch, beta, eta)
    return _bernoulli_kl(implicit, wanted)


@register_loss("rpo_reward_bwd_kl", paper=PAPER, grid=GRID, needs=NEEDS, sign_exceptions=BEYOND_TARGET)
def rpo_reward_bwd_kl(batch: PreferenceBatch, *, beta: Positive = 0.2, eta: Positive = 1.0) -> Tensor:
    """Reward-aware PO, the KL from the scores' preference to the policy's.

    L = KL(Bernoulli(sigmoid(d)) || Bernoulli(sigmoid(h))), h = beta * Delta, d = eta * (r_w - r_l)

    Source: Nemotron-4 (2406.11704) and Sun et al. 2025; equation numbers unverified.

    Checked against: `loss_func` of NeMo-Aligner's megatron_gpt_dpo_model.py, `rpo_bwd_kl`, whose naming this keeps.

    Returns `(n,)`.
    """
    implicit, wanted = _margins(batch, beta, eta)
    return _bernoulli_kl(wanted, implicit)
