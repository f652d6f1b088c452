"""Export of a trained policy as a folder that transformers or peft can load."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.backbones.language_model.adapters import lora_targets
from harness.backbones.language_model.policy import TENSORS, load_plain, load_policy, load_tokenizer
from harness.backbones.language_model.sampler import ends_named_by
from harness.core.assets import quiet
from harness.core.config import ModelConfig, SampleConfig
from harness.core.errors import UserError
from harness.core.render import Renderer

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # as safetensors files name them
PROBES = (4, 24)  # rows and tokens of the random ids on which the exported and the trained policy are compared
CLOSE = 1e-3  # nats: the largest difference of fp32 log-probs of a token that is explained by rounding


@dataclass(frozen=True)
class TrainedPolicy:
    """The parts of a policy: the base model's folder and the folders of trained tensors, applied in order."""

    model: Path
    config: ModelConfig
    tensors: Sequence[Path]


def export_model(trained: TrainedPolicy, folder: Path, decoding: SampleConfig, dtype: str = "") -> float:
    """Write a policy as a model folder: weights (adapters merged in fp32), tokenizer, generation settings.

    Weights are written in `dtype`, by default that of the base model's files. Return the largest difference, in nats,
    of a token's log-prob in the written model from that in the trained policy.

    Raises `UserError` for tensors that do not fit the model, or if merging the adapters changes the log-probs.
    """
    config = trained.config
    model = load_policy(trained.model, dataclasses.replace(config, dtype="float32"), trained.tensors).model
    expected = _probe(model)
    _merge_adapters(model)
    if (_probe(model) - expected).abs().max() > CLOSE:
        raise UserError(
            "merging the adapters changes what the model says (are tied weights among model.lora.targets?); "
            "export them with --adapter"
        )
    model.generation_config = _generation(trained, model, decoding)
    with quiet():
        model.to(getattr(torch, dtype or checkpoint_dtype(trained.model))).save_pretrained(folder)
    load_tokenizer(trained.model, config).save_pretrained(folder)
    written = load_plain(folder, config, "auto")
    return float((_probe(written) - expected).abs().max())


def export_adapter(trained: TrainedPolicy, folder: Path, decoding: SampleConfig, base: str) -> float:
    """Write a policy that was trained with LoRA as one peft adapter of the model named `base`.

    The adapters of the SFT policy and of the loss are joined into one, whose rank is the sum of theirs. Return the
    largest difference, in nats, of a token's log-prob from that in the trained policy.

    Raises `UserError` for a policy trained without LoRA, or for tensors that do not fit the model.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    config = dataclasses.replace(trained.config, dtype="float32")
    if config.tune != "lora":
        raise UserError(
            f"no adapter to export: the policy was trained with model.tune={config.tune}; leave --adapter out"
        )
    expected = _probe(load_policy(trained.model, config, trained.tensors).model)
    count = len(trained.tensors)
    settings = LoraConfig(  # alpha / rank, the scale of an adapter, does not change
        r=config.lora.rank * count,
        lora_alpha=config.lora.alpha * count,
        lora_dropout=config.lora.dropout,
        target_modules=lora_targets(config),
        task_type="CAUSAL_LM",
    )
    model = load_plain(trained.model, config, "float32")
    with quiet():
        wrapped = get_peft_model(model, settings)
        parameters = dict(model.named_parameters())
        for name, tensor in _stacked([load_file(path / TENSORS) for path in trained.tensors]).items():
            parameters[name].data = tensor
        wrapped.peft_config["default"].base_model_name_or_path = base
        wrapped.save_pretrained(folder)
        _generation(trained, model, decoding).save_pretrained(folder)
    load_tokenizer(trained.model, config).save_pretrained(folder)
    written = PeftModel.from_pretrained(load_plain(trained.model, config, "float32"), folder)
    return float((_probe(written) - expected).abs().max())


def checkpoint_dtype(folder: Path) -> str:
    """Return the dtype of the weights in a model folder."""
    with safe_open(sorted(Path(folder).glob("*.safetensors"))[0], "pt") as file:
        dtypes = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    return next((name for kind, name in DTYPES.items() if kind in dtypes), "float32")


def _merge_adapters(model: PreTrainedModel) -> None:
    """Merge the active adapters into the weights and remove them. Without adapters, do nothing."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def _stacked(adapters: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return several adapters as one, named "default": B_1 A_1 + B_2 A_2 = [B_1 B_2] [A_1; A_2]."""
    parts: dict[str, list[Tensor]] = {}
    for number, tensors in enumerate(adapters):
        for name, tensor in tensors.items():
            parts.setdefault(name.replace(f".adapter{number}", ".default"), []).append(tensor)
    return {name: torch.cat(factors, dim=0 if "_A.default" in name else 1) for name, factors in parts.items()}


def _generation(trained: TrainedPolicy, model: PreTrainedModel, decoding: SampleConfig) -> GenerationConfig:
    """Return the experiment's sampling settings. top_k is 0 because transformers' default would truncate."""
    from transformers import GenerationConfig

    renderer = Renderer(load_tokenizer(trained.model, trained.config))
    sampling = (
        {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
        if decoding.temperature
        else {"do_sample": False}
    )
    return GenerationConfig(
        bos_token_id=model.generation_config.bos_token_id,
        eos_token_id=sorted({*renderer.stop_tokens, *ends_named_by(trained.model)}),
        pad_token_id=renderer.pad_token,
        max_new_tokens=decoding.max_new_tokens,
        **sampling,
    )


@torch.no_grad()
def _probe(model: nn.Module) -> Tensor:
    """Return a model's fp32 log-probs of the tokens of a fixed text, `(rows, tokens - 1)`."""
    rows, tokens = PROBES
    size = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(size, (rows, tokens), generator=torch.Generator().manual_seed(0))
    logits = model.eval()(input_ids=ids, use_cache=False).logits[:, :-1].float()
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
