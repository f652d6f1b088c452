"""Log-probs and values of each token, for losses that need `token_values`: the second form of `Source.outputs`."""

from __future__ import annotations

import torch
from torch import Tensor


def by_row(flat: Tensor, sequence: Tensor, rows: int) -> Tensor:
    """Rearrange `(2, targets)` to `(rows, 2, T)`; `sequence`, `(targets,)` and ascending, is the row of each target.

    T is the number of targets of the longest row; shorter rows are padded with 0 at the end.
    """
    counts = torch.bincount(sequence, minlength=rows)
    mask = torch.arange(int(counts.max()), device=flat.device) < counts[:, None]
    return torch.stack([each.new_zeros(mask.shape).masked_scatter(mask, each) for each in flat], dim=1)
