"""LoRA: low-rank adapters on a model's modules, by peft."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.core.config import ModelConfig
from harness.core.errors import UserError
from harness.core.pretrained import loading

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NUDGE = 0.02  # the scale of random changes of new adapters, which otherwise have no effect


def lora_targets(config: ModelConfig) -> str | list[str]:
    """Return the modules that get adapters, in peft's form."""
    targets = config.lora.targets
    return targets if targets == "all-linear" else [target.strip() for target in targets.split(",")]


def add_adapters(model: PreTrainedModel, config: ModelConfig, count: int) -> None:
    """Add `count` LoRA adapters to the model, all active, of which the last one is trainable.

    They are not merged: in bf16 weights, most of a small change would be lost to rounding. Raises `UserError` for
    targets that peft refuses.
    """
    from peft import LoraConfig, get_peft_model

    lora = config.lora
    targets = lora_targets(config)
    settings = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    names = [f"adapter{i}" for i in range(count)]
    with loading("model.lora"):
        wrapped = get_peft_model(model, settings, adapter_name=names[0])  # modifies `model` in place
        for name in names[1:]:
            wrapped.add_adapter(name, settings)
    wrapped.base_model.set_adapter(names)
    for name, parameter in model.named_parameters():
        is_adapter = ".lora_" in name
        parameter.requires_grad_(is_adapter and names[-1] in name.split("."))
        if is_adapter:
            parameter.data = parameter.data.float()


@contextmanager
def nudged(adapters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Within, the adapters are changed at random, so that they have an effect."""
    generator = torch.Generator().manual_seed(0)
    before = {name: parameter.detach().clone() for name, parameter in adapters.items()}
    try:
        for parameter in adapters.values():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(NUDGE * noise.to(parameter.device))
        yield
    finally:
        for name, parameter in adapters.items():
            parameter.data.copy_(before[name])


def check_effect(model: PreTrainedModel, logprobs: Callable[[], Tensor]) -> None:
    """Raise `UserError` for modules whose weight has an effect on `logprobs()`, but whose adapter has none.

    Such an adapter would never be trained: the weight is read by code that does not call the module. Modules that take
    no part at all, such as those for images or an expert that no token is sent to, are left alone.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    adapters = {name: [p for p in layer.parameters() if p.requires_grad] for name, layer in layers.items()}
    silent = layers.keys() - _moving(logprobs, adapters)
    weights = {name: list(layers[name].get_base_layer().parameters(recurse=False)) for name in silent}
    for weight in itertools.chain(*weights.values()):
        weight.requires_grad_(True)
    ignored = _moving(logprobs, weights)
    for weight in itertools.chain(*weights.values()):
        weight.requires_grad_(False)
    if ignored:
        raise UserError(
            f"model.lora.targets: an adapter of {min(ignored)} would not be trained, because log-probs are computed "
            "from its weight alone; leave it out of the targets"
        )
    if len(silent) == len(layers):
        raise UserError("model.lora.targets: log-probs depend on none of these modules; name others")


def _moving(logprobs: Callable[[], Tensor], groups: Mapping[str, Sequence[nn.Parameter]]) -> set[str]:
    """Return the names of the groups of parameters of which one has a gradient that is not 0."""
    parameters = [(name, parameter) for name, group in groups.items() for parameter in group]
    with torch.enable_grad():
        total = logprobs().sum()
    if not parameters or not total.requires_grad:
        return set()
    gradients = torch.autograd.grad(total, [parameter for _, parameter in parameters], allow_unused=True)
    return {
        name
        for (name, _), gradient in zip(parameters, gradients, strict=True)
        if gradient is not None and gradient.any()
    }
