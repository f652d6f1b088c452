"""DPO for more than two responses: the likelihood of a whole ranking."""

import torch
from torch import Tensor

from losses.batch import PreferenceBatch
from losses.bounds import Positive
from losses.spec import register_loss


@register_loss(
    "plackett_luce",
    paper="2305.18290",
    grid={"beta": [0.01, 0.05, 0.1, 0.3]},
    data="listwise",
)
def plackett_luce(batch: PreferenceBatch, *, beta: Positive = 0.1) -> Tensor:
    """Listwise DPO: the Plackett-Luce likelihood of the responses in the order of their scores.

    L = -sum_k [ z_k - log sum_{j: r_j <= r_k} exp(z_j) ], z_k = beta * s_k

    Source: Rafailov et al. 2023, appendix A.3.

    Checked against: an independent loop over the ranking in fp64; K = 2 is DPO.

    Trap: the paper has no ties. Tied responses are each compared with all that score no higher, including themselves
    (Breslow's convention), so the order of the list does not matter. Longer lists have more weight. Returns `(n,)`.
    """
    lists = batch.lists
    z = beta * lists.logratio
    below = (lists.scores[:, None, :] <= lists.scores[:, :, None]) & lists.mask[:, None, :]
    below |= torch.eye(z.shape[1], dtype=torch.bool, device=z.device)  # keeps every row non-empty, padding included
    rivals = z[:, None, :].masked_fill(~below, -torch.inf).logsumexp(dim=2)
    return (rivals - z).masked_fill(~lists.mask, 0.0).sum(dim=1)
