"""Offline Proximal Policy Optimization: PPO's clipped surrogate on the responses of the data set."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from losses.batch import PreferenceBatch, Side
from losses.bounds import Inside, NonNegative, Share
from losses.numerics import exp
from losses.spec import register_loss


def discounted(x: Tensor, factor: float) -> Tensor:
    """Return `(n, T)` the sums of x_t, factor * x_(t+1), factor^2 * x_(t+2), ... to the end."""
    steps = torch.arange(x.shape[1], device=x.device)
    ahead = steps[:, None] - steps  # number of steps from column to row
    return x @ (factor ** ahead.clamp(min=0).to(x.dtype)).masked_fill(ahead < 0, 0.0)


def later(x: Tensor) -> Tensor:
    """Return `(n, T)` x shifted left by one token, with 0 at the end."""
    return pad(x[:, 1:], (0, 1))


def rewards(side: Side, reward: float) -> Tensor:
    """Return `(n, T)` the reward on each response's last token, and 0 elsewhere."""
    mask = side.require("token_mask")
    return reward * (mask & ~later(mask)).to(side.require("token_values").dtype)


def advantages(side: Side, reward: float, gamma: float, lam: float) -> Tensor:
    """Return `(n, T)` generalised advantage estimates; the value after a response's last token is 0."""
    values = side.require("token_values")
    return discounted(rewards(side, reward) + gamma * later(values) - values, gamma * lam)


@register_loss(
    "ppo_offline",
    paper="1707.06347",
    grid={"clip": [0.5], "critic_coef": [0.01], "kl_coef": [0.0, 0.1, 0.5], "gamma": [0.99], "lam": [0.95]},
    data="unpaired",
    needs=("reference", "token_values", "stopped"),
    reduction="token",
    couples_examples=True,
    sign_exceptions="raises or lowers a token by its advantage over the batch's mean, whatever the response; the KL "
    "term raises all",
)
def ppo_offline(
    batch: PreferenceBatch,
    *,
    clip: Inside = 0.5,  # at 1 rounding would decide at the start, where r = 1, which tokens are clipped
    critic_coef: NonNegative = 0.01,
    kl_coef: NonNegative = 0.1,
    gamma: Share = 0.99,
    lam: Share = 0.95,
) -> Tensor:
    """OFFLINE PPO, not comparable with online PPO: it samples nothing, and its behaviour policy is the reference.

    L = mean over the batch's tokens of max(-A r, -A clip(r, c, 1/c)) + critic_coef * (V - G)^2 / 2 - kl_coef * log r,
    r = pi / pi_ref of a token, c = clip; the reward is 1 on the last token of a chosen response and -1 on that of a
    rejected one; A is its GAE(gamma, lam), whitened over the batch's tokens, and G the discounted future reward, both
    without gradient

    Source: Schulman et al. 2017, eq. 7 and 9, on a fixed data set as in Ethayarajh et al. (2402.01306).

    Checked against: `PPOTrainer` of yinyueqin/relative-preference-optimization, which is the PPO of RPO's tables. It
    whitens A over one device's share of the batch; here A is whitened over the effective batch. Its value head has two
    hidden layers with dropout, random initialisation and separate gradient clipping; here the head is linear, starts at
    0 and is clipped with the policy. In neither does its gradient reach the policy. All defaults are that repository's.

    Trap: G leaves out the token's own reward, so it is 0 at the last token. HALOs' HEAD differs in three places: its G
    includes that reward, its range is 1 - c to 1 + c (0.5 to 1.5), and its KL term is + kl_coef * log r, which pushes
    the data's tokens down where this one pushes them up. A row is the sum over its tokens times (rows / tokens), so
    that the mean over rows equals the mean over tokens. Returns `(M + N,)`.
    """
    now = batch.require("stopped")
    sides = [(batch.chosen, now.chosen, 1.0), (batch.rejected, now.rejected, -1.0)]
    raw = [advantages(constant, reward, gamma, lam) for _, constant, reward in sides]
    masks = [side.require("token_mask") for side, _, _ in sides]
    count = (masks[0].sum() + masks[1].sum()).clamp(min=1)
    mean = (raw[0][masks[0]].sum() + raw[1][masks[1]].sum()) / count
    squares = [((a[mask] - mean) ** 2).sum() for a, mask in zip(raw, masks, strict=True)]
    variance = (squares[0] + squares[1]) / count

    rows = []
    for (side, _, reward), a, mask in zip(sides, raw, masks, strict=True):
        a = (a - mean) * (variance + 1e-8).rsqrt()
        logratio = side.require("token_policy") - side.require("token_reference")
        ratio = exp(logratio)
        surrogate = torch.maximum(-a * ratio, -a * ratio.clamp(clip, 1 / clip))
        critic = 0.5 * (side.require("token_values") - later(discounted(rewards(side, reward), gamma))) ** 2
        tokens = surrogate + critic_coef * critic - kl_coef * logratio
        rows.append(tokens.masked_fill(~mask, 0.0).sum(dim=1))
    every = torch.cat(rows)
    return every * len(every) / count
