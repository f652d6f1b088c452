"""The last layer's feed-forward part, computed only where its output is read: at the tokens that predict a completion.

It works on each token by itself, and no layer comes after it. Of a prompt's tokens all but the last need no more than
their keys and values there, and most tokens of dialogues and posts are a prompt's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def read_only_at(decoder: nn.Module, read: Tensor) -> Iterator[None]:
    """Within, the last layer's `mlp` computes the tokens `read`, `(n,)` different positions in rows x length.

    Elsewhere its output is zero. A decoder whose layers have no such part, or one that returns more than a tensor (a
    mixture of experts), runs as it is.
    """
    mlp = getattr(decoder.layers[-1], "mlp", None) if hasattr(decoder, "layers") else None
    if mlp is None:
        yield
        return
    everywhere = mlp.forward

    def forward(hidden: Tensor) -> Tensor:
        found = everywhere(hidden.flatten(0, 1)[None, read])
        if not isinstance(found, Tensor):
            return everywhere(hidden)
        return found.new_zeros(hidden.shape).flatten(0, 1).index_copy_(0, read, found[0]).view_as(hidden)

    mlp.forward = forward
    try:
        yield
    finally:
        del mlp.forward
