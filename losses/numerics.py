"""Functions that stay finite, and keep a finite gradient, where the plain ones overflow; and the size of rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST_EXPONENT = 30.0  # nats; above this, exp is continued along its tangent
# Error of one token's log-prob, in nats, by the dtype of the model's layers: the order in which a forward pass adds up
# depends on the rows beside it. With SmolLM2-135M and responses of 2 to 90 tokens, the largest difference between ways
# to cut a batch is less than half of what `rounding` makes of this, and mostly a tenth. float16's is a guess.
TOKEN_ERROR = {torch.float64: 1e-14, torch.float32: 8e-6, torch.float16: 0.004, torch.bfloat16: 0.03}
SUM_ERROR = 8  # units in the last place of a sum of a few hundred log-probs


def exp(x: Tensor) -> Tensor:
    """Return exp(x), continued along its tangent above 30, so that value and gradient stay finite at any log-ratio."""
    return x.clamp(max=LARGEST_EXPONENT).exp() * (1 + (x - LARGEST_EXPONENT).clamp(min=0))


def log_odds(mean_logp: Tensor) -> Tensor:
    """Return log(p / (1 - p)) for p = exp(mean_logp), finite up to p = 1.

    A mean log-prob closer to 0 than the machine epsilon is replaced by minus the epsilon: at 0 the odds are infinite.
    """
    x = mean_logp.clamp(max=-torch.finfo(mean_logp.dtype).eps)
    # log(1 - exp(x)): of the two forms, each is accurate where the other cancels
    log1mexp = torch.where(x > -math.log(2), (-torch.expm1(x)).log(), torch.log1p(-x.exp()))
    return x - log1mexp


def rounding(policy: Tensor, reference: Tensor, layers: torch.dtype) -> Tensor:
    """Return how far rounding can move log-ratios away from 0 where policy = reference, in nats, in their shape.

    The errors of tokens add up like a random walk. Its length is estimated from the size of the log-prob: a nat or two
    per token, and 10 nats more for tokens of probability near 1. The sum rounds in proportion to its own size: at
    fp32 a log-ratio of log-probs of -5 is known to 4e-5 nats, of -500 to 7e-4. `layers` is the dtype of the model's
    layers; the sum has that of the log-probs.
    """
    size = torch.maximum(policy.detach().abs(), reference.abs())
    return TOKEN_ERROR[layers] * (10 + size).sqrt() + SUM_ERROR * torch.finfo(policy.dtype).eps * size
