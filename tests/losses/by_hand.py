"""What the golden tests share: scalar arithmetic apart from torch, and one pair whose numbers are easy."""

from __future__ import annotations

import math

import torch

from losses import PreferenceBatch


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def nll(x: float) -> float:
    """-log sigmoid(x), stable for both signs."""
    return math.log1p(math.exp(-x)) if x >= 0 else -x + math.log1p(math.exp(x))


def the_pair(**fields) -> PreferenceBatch:
    """l_w = -10, l_l = -11, reference -12 and -10: s_w = 2, s_l = -1, Delta = 3; |y_w| = 4, |y_l| = 2 tokens."""
    return PreferenceBatch.from_logps(
        *(torch.tensor([x]) for x in (-10.0, -11.0, -12.0, -10.0)),
        chosen_tokens=torch.tensor([4]),
        rejected_tokens=torch.tensor([2]),
        **fields,
    )
