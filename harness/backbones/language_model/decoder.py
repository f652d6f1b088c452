"""Access to the internals of a transformers model: its decoder's layers, its head and its settings."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from harness.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


DROPOUT = re.compile(r"(?!classifier|summary).*(dropout|pdrop)")  # without those of heads for other tasks


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """Return the part of a causal LM that maps ids to hidden states."""
    decoder = model.get_decoder()
    misnamed = decoder is model or isinstance(decoder, nn.Linear)  # as by Llama 4's text model and by ModernBERT's
    return model.model if misnamed else decoder


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """Return the decoder's layers, in order: its longest list of modules."""
    lists = [part for part in decoder_of(model).children() if isinstance(part, nn.ModuleList)]
    return list(max(lists, key=len, default=()))


def last_layers(model: PreTrainedModel, count: int) -> list[nn.Module]:
    """Return the decoder's last layers and its final norm: what `tune: last_layers` trains.

    Raises `UserError` as `split_decoder` does.
    """
    _, top = split_decoder(decoder_of(model), count)
    return [*top.layers, top.norm]


def head_of(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """Return the weight, `(vocabulary, d)`, and the bias, `(vocabulary,)` or None, that map hidden states to logits."""
    head = model.get_output_embeddings()
    return head.weight, getattr(head, "bias", None)


def hidden_size(model: PreTrainedModel) -> int:
    """Return d, the size of a hidden state."""
    return model.config.get_text_config().hidden_size


def context_of(settings: PretrainedConfig) -> int | None:
    """Return how many tokens a sequence may have, by a model's configuration; None if it states no limit.

    With longrope this is the original context. One sequence beyond it would change the positions of all sequences in
    its forward pass, so that log-probs would depend on the batch.
    """
    text = settings.get_text_config()
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    rope = getattr(text, "rope_parameters", None) or {}
    for part in (rope, *rope.values()):  # some models have one for each kind of layer
        if isinstance(part, Mapping) and part.get("rope_type") == "longrope":
            limits.append(part.get("original_max_position_embeddings"))
    return min(filter(None, limits), default=None)


def dropout_rates(settings: PretrainedConfig) -> dict[str, float]:
    """Return the rates of a model's own dropout, by their names in its configuration."""
    rates = {name: value for name, value in vars(settings).items() if DROPOUT.match(name)}
    return {name: value for name, value in rates.items() if isinstance(value, (int, float))}


def why_one_each(model: PreTrainedModel, longest: int) -> str | None:
    """Return why completions of a prompt, sequences of up to `longest` tokens, cannot share a row; None if they can.

    Sharing needs positions that are inputs, and attention that accepts a mask per query and covers the longest
    sequence.
    """
    if "position_ids" not in inspect.signature(decoder_of(model).forward).parameters:
        return "it takes no position ids"
    config = model.config.get_text_config()
    if config._attn_implementation != "sdpa":
        return f"its attention is {config._attn_implementation!r}, not 'sdpa'"
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if any(window and window < longest for window in windows):
        return f"its attention looks back {min(filter(None, windows))} tokens, and a sequence has {longest}"
    return None


@contextmanager
def read_only_at(decoder: nn.Module, read: Tensor) -> Iterator[None]:
    """Within, the last layer's `mlp` computes only the tokens `read`: `(n,)` distinct flat indices into (rows, length).

    The `mlp` treats each token separately and no layer follows it, so only tokens that predict a completion need it.
    Its output is zero elsewhere. A decoder whose layers have no `mlp`, or one that takes or returns more than a single
    tensor (a mixture of experts), runs unchanged.
    """
    mlp = getattr(decoder.layers[-1], "mlp", None) if hasattr(decoder, "layers") else None
    if mlp is None:
        yield
        return
    everywhere = mlp.forward

    def forward(hidden: Tensor, *more: object, **others: object) -> Tensor:
        if more or others:
            return everywhere(hidden, *more, **others)
        output = everywhere(hidden.flatten(0, 1)[None, read])
        if not isinstance(output, Tensor):
            return everywhere(hidden)
        return output.new_zeros(hidden.shape).flatten(0, 1).index_copy_(0, read, output[0]).view_as(hidden)

    mlp.forward = forward
    try:
        yield
    finally:
        del mlp.forward


def split_decoder(decoder: nn.Module, last: int) -> tuple[nn.Module, nn.Module]:
    """Return (trunk, top), views of a decoder: all layers but the last `last`, and the last ones with the final norm.

    Both share the decoder's parameters. Raises `UserError` for a decoder without `.layers` and `.norm`.
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
