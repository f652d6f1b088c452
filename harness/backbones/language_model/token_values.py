"""Log-probs and values of each token, for losses that need `token_values`: the second form of `Source.outputs`."""

from __future__ import annotations

import torch
from torch import Tensor


def by_row(flat: Tensor, sequence: Tensor, rows: int) -> Tensor:
    """Return `(rows, 2, T)` of `(2, targets)`, given the row that each target belongs to, in order.

    T is the longest row's number of targets; zeros stand behind a shorter one's.
    """
    counts = torch.bincount(sequence, minlength=rows)
    mask = torch.arange(int(counts.max()), device=flat.device) < counts[:, None]
    return torch.stack([each.new_zeros(mask.shape).masked_scatter(mask, each) for each in flat], dim=1)
