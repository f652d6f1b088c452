"""Multi-Reference Preference Optimization: DPO against two references at once."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.batch import PreferenceBatch, Side
from losses.bounds import Positive, Share
from losses.spec import register_loss


def clipped(second: Tensor, first: Tensor, width: Tensor) -> Tensor:
    """Return the second reference's log-probs, clipped to within the fraction `width` of the first's."""
    return second.clamp(min=first * (1 + width), max=first * (1 - width))


def mixture(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Return log of the harmonic mixture 1 / (weight / p_1 + (1 - weight) / p_2) of probabilities, all as logs."""
    # log(0) = -inf drops out of logaddexp; its gradient is never needed, as references are constant
    return first + second - torch.logaddexp(weight.log() + second, (1 - weight).log() + first)


def _reference(side: Side) -> tuple[Tensor, Tensor]:
    return side.require("reference"), side.require("second_reference")


@register_loss(
    "mrpo",
    paper="2405.16388",
    grid={"beta": [0.05, 0.1, 0.3], "eta": [0.05, 0.1]},
    needs=("reference", "second_reference"),
)
def mrpo(batch: PreferenceBatch, *, beta: Positive = 0.1, eta: Share = 0.1) -> Tensor:
    """DPO against the harmonic mixture of two references, the second clipped to be near the first.

    L = -log sigmoid(beta * ((l_w - m_w) - (l_l - m_l))), 1 / exp(m) = a / p_1 + (1 - a) / p_2,
    log p_2 clipped to between (1 + e) log p_1 and (1 - e) log p_1, a = |d_2| / (|d_1| + |d_2|),
    d = log p(y_w) - log p(y_l) of each reference

    Source: Le et al. 2024; e is eta times the response's share of |log p_1 + log p_2| in its pair.

    Checked against: `trainer_mref.py` of thaihungle/MRPO, whose reference 2 (the policy's start) is the first here.

    Trap: two equal references give DPO. The weight a uses the log-probs before clipping, as in the authors'
    code. Returns `(n,)`.
    """
    (first_w, second_w), (first_l, second_l) = _reference(batch.chosen), _reference(batch.rejected)
    first_gap, second_gap = (first_w - first_l).abs(), (second_w - second_l).abs()
    weight = second_gap / (first_gap + second_gap + 1e-6)
    total_w, total_l = (first_w + second_w).abs(), (first_l + second_l).abs()
    share = total_w / (total_w + total_l).clamp(min=1e-6)
    mixed_w = mixture(first_w, clipped(second_w, first_w, eta * share), weight)
    mixed_l = mixture(first_l, clipped(second_l, first_l, eta * (1 - share)), weight)
    return -logsigmoid(batch.labelled(beta * ((batch.chosen.policy - mixed_w) - (batch.rejected.policy - mixed_l))))
