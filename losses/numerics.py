"""Functions that stay finite, and keep a finite gradient, where the plain ones overflow."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST_EXPONENT = 30.0  # nats; above this, exp is continued along its tangent


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
