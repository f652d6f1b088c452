"""The policy: a causal language model, its trained parameters, and how they are saved.

A trained policy is the base model plus one file of tensors, or two (from SFT, then from the loss). With LoRA the SFT
adapter stays active below the one that the loss trains, so that the reference is the SFT model and never the base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.backbones.language_model.adapters import add_adapters, check_effect, nudged
from harness.backbones.language_model.decoder import (
    context_of,
    decoder_of,
    dropout_rates,
    head_of,
    last_layers,
    layers_of,
    read_only_at,
    split_decoder,
)
from harness.backbones.language_model.logprobs import CHUNK_LOGITS, token_collisions, token_logprobs
from harness.backbones.language_model.rows import TokenBatch, collate
from harness.backbones.language_model.tokens import Tokens
from harness.core.config import ModelConfig
from harness.core.errors import UserError
from harness.core.pretrained import check_files, load_model, loading, read_tokenizer
from harness.training.randomness import seeded
from harness.training.sharding import whole

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TENSORS = "tensors.safetensors"
CAUSAL = "AutoModelForCausalLM"


class LanguageModel(nn.Module):
    """A causal LM that returns fp32 log-probs of completion tokens, computed in the experiment's compute dtype.

    With `tune: last_layers`, `trunk` computes the frozen layers' activations, from which the forward pass can start;
    all policies of the experiment share them.
    """

    def __init__(self, model: PreTrainedModel, config: ModelConfig):
        super().__init__()
        self.model = model
        self.compute_dtype = getattr(torch, config.dtype)
        self.context = context_of(model.config)
        self.adapted = config.tune == "lora"
        self.own_dropout = config.dropout > 0
        self.together = False  # see `harness.training.base.Policy`, the protocol that this class implements
        self.trunk = self.top = self.value_head = None
        if config.tune == "last_layers":
            trunk, top = split_decoder(decoder_of(model), config.last_layers)
            object.__setattr__(self, "trunk", trunk)  # views of `model`, which must not be registered twice
            object.__setattr__(self, "top", top)

    def train(self, mode: bool = True) -> LanguageModel:
        """Turn on dropout: that of the adapters, and the model's own if `model.dropout` is set.

        Otherwise the model itself stays in eval mode, so that nothing in it is random.
        """
        super().train(mode)
        if not self.own_dropout:
            self.model.eval()
            for name, module in self.model.named_modules():
                if "lora_dropout" in name:
                    module.train(mode)
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return `(targets,)` fp32 log-probs of the batch's completion tokens."""
        return self._logprobs(self.predictors(batch), batch)

    def add_value_head(self) -> None:
        """Add a linear value head, initially 0; it is trained and checkpointed, but not written by `save`."""
        # created without random numbers, so that dropout is the same as for losses without values
        self.value_head = nn.utils.skip_init(
            nn.Linear, head_of(self.model)[0].shape[1], 1, device=self.device, dtype=torch.float32
        )
        for parameter in self.value_head.parameters():
            nn.init.zeros_(parameter)

    def with_values(self, batch: TokenBatch) -> Tensor:
        """Return `(2, targets)`: fp32 log-probs of completion tokens, and the value head's output before each token.

        No gradient flows from the values to the model, so training the head does not change the policy.
        """
        hidden = self.predictors(batch)
        return torch.stack([self._logprobs(hidden, batch), self.value_head(hidden.detach().float()).squeeze(1)])

    @torch.no_grad()
    def confidences(self, batch: TokenBatch) -> Tensor:
        """Return `(targets,)` log pi(y_t) - log sum_v pi(v)^2 of the batch's completion tokens, in fp32."""
        hidden = self.predictors(batch)
        with self.autocast():
            collisions = token_collisions(hidden, *head_of(self.model))
        return self._logprobs(hidden, batch) - collisions

    def distributions(self, batch: TokenBatch) -> Iterator[Tensor]:
        """Yield chunks of `(targets, vocabulary)`: fp32 log-probs of all tokens at each completion token."""
        weight, bias = head_of(self.model)
        for chunk in self.predictors(batch).split(max(1, CHUNK_LOGITS // weight.shape[0])):
            with torch.autocast(self.device.type, enabled=False):
                shift = None if bias is None else bias.float()
                yield nn.functional.linear(chunk.float(), weight.float(), shift).log_softmax(1)

    def _logprobs(self, hidden: Tensor, batch: TokenBatch) -> Tensor:
        """Return `(targets,)` fp32 log-probs of the completion tokens from the hidden states that predict them."""
        weight, bias = head_of(self.model)
        with self.autocast():
            return token_logprobs(hidden, weight, batch.targets, bias)

    def predictors(self, batch: TokenBatch) -> Tensor:
        """Return `(targets, d)`: the last hidden states that predict the completion tokens."""
        with self.autocast():
            decoder, start = (
                (decoder_of(self.model), {"input_ids": batch.input_ids})
                if batch.hidden is None
                else (self.top, {"inputs_embeds": batch.hidden})
            )
            with read_only_at(decoder, batch.read):
                hidden = decoder(**start, **batch.inputs(self.compute_dtype), use_cache=False).last_hidden_state
            return hidden.flatten(0, 1)[batch.position]

    @torch.no_grad()
    def trunk_activations(self, batch: TokenBatch) -> Tensor:
        """Return `(rows, length, d)`: the frozen layers' output, in the compute dtype."""
        with self.autocast():
            inputs = {"input_ids": batch.input_ids, **batch.inputs(self.compute_dtype)}
            hidden = self.trunk(**inputs, use_cache=False).last_hidden_state
            return hidden.to(self.compute_dtype)

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name, including those of the value head."""
        head = {} if self.value_head is None else dict(self.value_head.named_parameters(prefix="value_head"))
        return _trained(self.model) | head

    def units(self) -> list[nn.Module]:
        """Return the modules that FSDP shards separately: each layer of the decoder, then the policy for the rest."""
        return [*layers_of(self.model), self]

    def entries(self) -> tuple[str, ...]:
        """Return the names of the methods, besides `forward`, that `BatchSource` calls to run the policy."""
        return ("confidences", "with_values")

    def save(self, folder: Path, *, write: bool = True) -> None:
        """Write the model's trained tensors, fp32, as safetensors. All processes call it; one has `write`."""
        tensors = {}
        for name, parameter in _trained(self.model).items():
            tensor = whole(parameter.detach())
            if write:
                tensors[name] = tensor.float().cpu().contiguous()
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / TENSORS)

    @torch.no_grad()
    def verify(self) -> None:
        """Check on a few tokens that log-probs equal those from the model's own logits; raise `UserError` if not.

        This detects models that scale or cap their logits, that see later tokens or padding, or whose layers cannot be
        run separately or in part, those that change their weights when they are first run, and adapters that would not
        be trained. Sampling has a check of its own (`steps_of`).
        """
        kind = self.model.config.model_type
        prompt, ends = 3, (9, 6)
        rows = torch.arange(1, 19).remainder(self.model.config.get_text_config().vocab_size).view(2, 9).to(self.device)
        alone = [row[None, :end] for row, end in zip(rows, ends, strict=True)]
        tokens = [Tokens(tuple(ids[0, :prompt].tolist()), tuple(ids[0, prompt:].tolist())) for ids in alone]
        batch = collate(tokens, pad_token=int(rows[0, 0])).to(self.device)
        tolerance = 1e-3 if self.compute_dtype == torch.float32 else 0.1
        with loading(f"model {kind}"), nudged(self.trained() if self.adapted else {}):
            before = self._sums()
            self(batch)
            if self._sums() != before:
                raise UserError(
                    f"model {kind}: it changes its own weights for evaluation, so that saved ones would be changed "
                    "again when they are loaded (for RWKV, set rescale_every to 0 in its config.json)"
                )
            if self.adapted:
                check_effect(self.model, lambda: self(batch))
            with self.autocast():
                logits = [self.model(input_ids=ids, use_cache=False).logits[0, prompt - 1 : -1] for ids in alone]
            expected = torch.cat(logits).float().log_softmax(-1).gather(-1, batch.targets[:, None]).squeeze(-1)
            for hidden in [None] if self.trunk is None else [None, self.trunk_activations(batch)]:
                batch.hidden = hidden
                if not torch.allclose(self(batch), expected, atol=tolerance):
                    how = "its last layers alone" if hidden is not None else "its last hidden states in a batch"
                    hint = "; use tune: full or lora" if hidden is not None else ""
                    raise UserError(f"model {kind}: log-probs computed from {how} differ from its own logits{hint}")

    def _sums(self) -> list[float]:
        return [parameter.detach().sum(dtype=torch.float64).item() for parameter in self.parameters()]

    def autocast(self) -> torch.autocast:
        """Return the autocast context in which the model runs, both for log-probs and for sampling."""
        return torch.autocast(self.device.type, dtype=self.compute_dtype, enabled=self.compute_dtype != torch.float32)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def load_tokenizer(folder: Path, config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder."""
    return read_tokenizer(folder, f"tokenizer in {folder}", trust_remote_code=config.trust_remote_code)


def model_settings(folder: Path, config: ModelConfig) -> PretrainedConfig:
    """Read a model's configuration (a transformers `PretrainedConfig`) without its weights."""
    from transformers import AutoConfig

    with loading(f"configuration in {folder}"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)


def load_plain(folder: Path, config: ModelConfig, dtype: str, **settings: object) -> PreTrainedModel:
    """Load the model of a folder as transformers does, and check its weights; `dtype` may be "auto", the files' own.

    `settings` replace those of its config.json.
    """
    what, remote = f"model in {folder}", config.trust_remote_code
    return load_model(CAUSAL, folder, what, exact=True, dtype=dtype, trust_remote_code=remote, **settings)


def only_read(config: ModelConfig) -> ModelConfig:
    """Return the settings of a further model that is used as it is, such as a second reference."""
    return dataclasses.replace(config, tune="full", dropout=0.0)


def check_folder(folder: Path, config: ModelConfig) -> PretrainedConfig:
    """Return a model's configuration, after the checks of `load_policy` that need no weights; raises `UserError`."""
    remote = config.trust_remote_code
    model = check_files(CAUSAL, folder, f"model in {folder}", exact=True, trust_remote_code=remote)
    if config.tune == "last_layers":
        split_decoder(decoder_of(model), config.last_layers)
    if config.dropout and not dropout_rates(model.config):
        raise UserError(f"model.dropout={config.dropout:g}: the model in {folder} has no dropout of its own")
    return model.config


def load_policy(folder: Path, config: ModelConfig, trained: Sequence[Path] = (), *, seed: int = 0) -> LanguageModel:
    """Load the base model, apply trained tensors in order, and make it trainable.

    `trained` are folders that `LanguageModel.save` wrote. With LoRA each is a separate adapter, and a new one to be
    trained, initialised with `seed`, is added on top; it has no effect until it is trained. The policy is returned in
    eval mode. Torch's random state is left as it was.
    """
    rates = dict.fromkeys(dropout_rates(model_settings(folder, config)), config.dropout) if config.dropout else {}
    with seeded(seed):  # a model may draw numbers when it is made
        model = load_plain(folder, config, config.dtype, **rates)
    model.config.return_dict = True  # whatever the file says: outputs are read by name
    tensors = []
    for path in trained:
        with loading(f"trained tensors in {path}"):
            tensors.append(load_file(path / TENSORS))
    if config.tune == "lora":
        with seeded(seed):
            add_adapters(model, config, len(tensors) + 1)
    else:
        model.requires_grad_(config.tune == "full")
    if config.tune == "last_layers":
        for module in last_layers(model, config.last_layers):
            module.requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:  # small steps would be lost in bf16, so trained parameters are fp32
            parameter.data = parameter.data.float()
    for part in tensors:
        _apply(model, part)
    return LanguageModel(model, config).eval()


def _apply(model: PreTrainedModel, tensors: dict[str, Tensor]) -> None:
    """Replace the model's parameters of the same names by trained tensors, fp32."""
    parameters = dict(model.named_parameters())
    missing = sorted(set(tensors) - set(parameters))
    if missing:
        raise UserError(f"trained tensors do not fit the model: it has no {missing[0]!r}")
    for name, tensor in tensors.items():
        parameters[name].data = tensor.to(parameters[name].device)
