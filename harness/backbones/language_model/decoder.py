"""What the harness knows of the inside of a transformers decoder: its layers, its final norm, its feed-forward parts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from harness.core.errors import UserError


@contextmanager
def read_only_at(decoder: nn.Module, read: Tensor) -> Iterator[None]:
    """Within, the last layer's `mlp` computes the tokens `read` only, `(n,)` different positions in rows x length.

    It works on each token by itself, and no layer comes after it: only the tokens that predict a completion need it.
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


def split_decoder(decoder, last: int) -> tuple[nn.Module, nn.Module]:
    """Return (trunk, top): views of a decoder, all layers but the last `last`, and those with the final norm.

    Both share the decoder's parameters. Raises `UserError` for a decoder that is not built of `.layers`.
    """
    if not hasattr(decoder, "layers") or not hasattr(decoder, "norm"):
        raise UserError(f"tune: last_layers does not know the layers of {type(decoder).__name__}; use lora or full")
    depth = len(decoder.layers)
    if last >= depth:
        raise UserError(f"model.last_layers={last}, but the model has {depth} layers; use tune: full")
    parts = []
    for span in (slice(0, depth - last), slice(depth - last, depth)):
        part = copy.copy(decoder)
        part._modules = dict(decoder._modules)
        part.layers = decoder.layers[span]
        part.config = copy.deepcopy(decoder.config)
        part.config.num_hidden_layers = len(part.layers)
        if getattr(decoder.config, "layer_types", None):
            part.config.layer_types = list(decoder.config.layer_types)[span]
        parts.append(part)
    parts[0].norm = nn.Identity()
    return parts[0], parts[1]
