"""The two forms of what a policy makes of responses: one log-prob of each, or log-probs and values of each token.

The second, for losses that need `token_values`, is `(rows, 2, T)`, padded with zeros to the longest completion of the
effective batch: like `(rows,)` log-probs it is gathered, cut and given weights by its first dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor


def by_row(flat: Tensor, sequence: Tensor, rows: int, width: int) -> Tensor:
    """Return `(rows, 2, width)` of `(2, targets)`, given the row that each target belongs to, in order."""
    counts = torch.bincount(sequence, minlength=rows)
    mask = torch.arange(width, device=flat.device) < counts[:, None]
    return torch.stack([each.new_zeros(mask.shape).masked_scatter(mask, each) for each in flat], dim=1)


def log_probs(outputs: Tensor) -> Tensor:
    """Return `(rows,)` summed log-probs of outputs in either form."""
    return outputs if outputs.ndim == 1 else outputs[:, 0].sum(dim=1)
