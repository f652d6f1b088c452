"""All that the harness knows of the inside of a transformers model: its decoder's layers, its head, its settings."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from harness.core.errors import UserError


def decoder_of(model) -> nn.Module:
    """Return the part of a causal LM that turns ids into hidden states."""
    return model.get_decoder()


def layers_of(model) -> list[nn.Module]:
    """Return the decoder's layers, in order."""
    return list(decoder_of(model).layers)


def last_layers(model, count: int) -> list[nn.Module]:
    """Return the decoder's last layers and its final norm: what `tune: last_layers` trains."""
    return [*layers_of(model)[-count:], decoder_of(model).norm]


def head_of(model) -> tuple[Tensor, Tensor | None]:
    """Return the weight, `(vocabulary, d)`, and the bias, `(vocabulary,)` or None, that turn hidden states into logits."""
    head = model.get_output_embeddings()
    return head.weight, getattr(head, "bias", None)


def hidden_size(model) -> int:
    """Return d, the size of a hidden state."""
    return model.config.get_text_config().hidden_size


def why_one_each(model, longest: int) -> str | None:
    """Return why two completions of a prompt cannot stand in one row of up to `longest` tokens each; None if they may.

    A row of several needs attention that takes a mask for each query, and that looks back as far as the longest.
    """
    config = model.config.get_text_config()
    if config._attn_implementation != "sdpa":
        return f"its attention is {config._attn_implementation!r}, not 'sdpa'"
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if any(window and window < longest for window in windows):
        return f"its attention looks back {min(filter(None, windows))} tokens, and a sequence has {longest}"
    return None


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
