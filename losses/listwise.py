"""Losses on K scored responses to a prompt, weighted by their scores (`plackett_luce` uses only their order)."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.batch import Lists, PreferenceBatch
from losses.bounds import Positive
from losses.spec import register_loss

TARGET_SIGN = "pulls a response back once the policy favours it by more than the scores do"


def log_shares(lists: Lists, values: Tensor) -> Tensor:
    """Return `(n, K)` log softmax of `values` over each list; 0 where there is no response."""
    masked = values.masked_fill(~lists.mask, -torch.inf)
    return masked.log_softmax(dim=1).masked_fill(~lists.mask, 0.0)


def target_shares(lists: Lists, temperature: float) -> Tensor:
    """Return `(n, K)` softmax of the scores over each list; 0 where there is no response."""
    return log_shares(lists, lists.scores / temperature).exp() * lists.mask


@register_loss(
    "lipo",
    paper="2402.01878",
    grid={"beta": [0.05, 0.1, 0.5], "score_scale": [1.0, 10.0]},
    data="listwise",
)
def lipo(batch: PreferenceBatch, *, beta: Positive = 0.05, score_scale: Positive = 1.0) -> Tensor:
    """LiPO-lambda: pairwise logistic losses, weighted by how much swapping the two would cost the ranking (LambdaRank).

    L = sum_{i, j: psi_i > psi_j} D_ij * -log sigmoid(beta * (s_i - s_j)),
    D_ij = |2^psi_i - 2^psi_j| * |1 / log(1 + rank_i) - 1 / log(1 + rank_j)|

    Source: Liu et al. 2024, LiPO-lambda; psi = r / score_scale, rank is by s (1 is best), without gradient.

    Checked against: an independent loop in fp64. No official code is known.

    Trap: the paper prints a leading minus; the loss minimised here has a plus. Its labels psi range from about 0 to 1;
    divide scores on other scales by score_scale, because gains are exponential. The paper does not define the ranks of
    equal s, as at the start: here ties, which are s within rounding (`losses.numerics.rounding`), rank by score (equal
    ranks would have no gradient). K = 2 with psi 1 and 0 is 0.532 * DPO.
    Returns `(n,)`.
    """
    lists = batch.lists
    z, psi = beta * lists.logratio, lists.scores / score_scale
    here, there = lists.mask[:, :, None], lists.mask[:, None, :]
    discount = 1 / (2 + lists.ahead.sum(dim=2)).to(z.dtype).log()
    gain = torch.exp2(psi)
    weight = (gain[:, :, None] - gain[:, None, :]).abs() * (discount[:, :, None] - discount[:, None, :]).abs()
    pairs = here & there & (psi[:, :, None] > psi[:, None, :])
    return (weight * -logsigmoid(z[:, :, None] - z[:, None, :])).masked_fill(~pairs, 0.0).sum(dim=(1, 2))


@register_loss(
    "info_nca",
    paper="2402.05369",
    grid={"beta": [0.01, 0.05, 0.1], "temperature": [0.1, 1.0]},
    data="listwise",
    needs=("reference", "scores"),
    sign_exceptions=TARGET_SIGN,
)
def info_nca(batch: PreferenceBatch, *, beta: Positive = 0.01, temperature: Positive = 1.0) -> Tensor:
    """InfoNCA: cross-entropy of the policy's distribution over the responses to the softmax of their scores.

    L = -sum_i softmax_i(r / temperature) * log softmax_i(beta * s)

    Source: Chen et al. 2024, InfoNCA; the paper's alpha is 1 / temperature.

    Checked against: `nca_loss` of thu-ml/Noise-Contrastive-Alignment, reward_trainer.py, InfoNCA, which adds 0.01 to
    the first score of each list.

    Trap: as temperature goes to 0, K = 2 is DPO; the authors' configuration file sets 0.0001. Returns `(n,)`.
    """
    lists = batch.lists
    return -(target_shares(lists, temperature) * log_shares(lists, beta * lists.logratio)).sum(dim=1)


@register_loss(
    "nca_reward",
    paper="2402.05369",
    grid={"beta": [0.01, 0.05, 0.1], "temperature": [0.1, 1.0]},
    data="listwise",
    needs=("reference", "scores"),
    start_value=lambda beta, temperature: 2 * math.log(2),
    sign_exceptions=TARGET_SIGN,
)
def nca_reward(batch: PreferenceBatch, *, beta: Positive = 0.01, temperature: Positive = 1.0) -> Tensor:
    """NCA on scored lists: each response is contrasted with noise, which also constrains absolute likelihoods.

    L = -sum_i (softmax_i(r / temperature) * log sigmoid(beta * s_i) + log sigmoid(-beta * s_i) / K)

    Source: Chen et al. 2024, NCA for explicit rewards; the paper's alpha is 1 / temperature.

    Checked against: `nca_loss` of thu-ml/Noise-Contrastive-Alignment, reward_trainer.py, NCA.

    Trap: as temperature goes to 0, K = 2 is `nca`. Returns `(n,)`.
    """
    lists = batch.lists
    z = beta * lists.logratio
    noise = lists.mask.to(z.dtype) / lists.mask.sum(dim=1, keepdim=True)
    return -(target_shares(lists, temperature) * logsigmoid(z) + noise * logsigmoid(-z)).sum(dim=1)


@register_loss(
    "exo_rw",
    paper="2402.00856",
    grid={"beta": [0.1, 0.5], "temperature": [0.5, 1.0]},
    data="listwise",
    needs=("reference", "scores"),
    sign_exceptions=TARGET_SIGN,
)
def exo_rw(batch: PreferenceBatch, *, beta: Positive = 0.5, temperature: Positive = 0.5) -> Tensor:
    """EXO on scored lists: the reverse KL from the policy's choice of response to the softmax of the scores.

    L = KL(softmax(beta * s) || softmax(r / temperature))

    Source: Ji et al. 2024, EXO-rw; beta is their beta_pi, temperature their beta_r.

    Checked against: `exact_loss` of haozheji/exact-optimization, exo-rw.

    Trap: `info_nca` is the KL in the other direction, up to the entropy of the target. Returns `(n,)`.
    """
    lists = batch.lists
    choice, target = log_shares(lists, beta * lists.logratio), log_shares(lists, lists.scores / temperature)
    return (choice.exp() * (choice - target)).sum(dim=1)
