"""Adapters are trained and have an effect on log-probs, or their targets are refused in one line."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from harness.backbones.language_model.adapters import add_adapters, check_effect
from harness.backbones.language_model.policy import load_policy
from harness.backbones.language_model.rows import collate
from harness.backbones.language_model.tokens import Tokens
from harness.core.config import LoraConfig, ModelConfig
from harness.core.errors import UserError

BATCH = collate([Tokens((5, 6, 7), (8, 9)), Tokens((10, 11), (12, 13, 14, 15))], 2)


def with_targets(targets: str) -> ModelConfig:
    return ModelConfig(tune="lora", lora=LoraConfig(rank=4, targets=targets))


def folder_of(folder, kind: str, **changes):
    """Write a tiny random model of some architecture."""
    sizes = {"vocab_size": 500, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **changes}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


SMALL = {"num_key_value_heads": 2, "intermediate_size": 64}
KINDS = {
    "llama": SMALL,
    "gpt2": {},
    "gpt_neox": {"intermediate_size": 64},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi": SMALL,
    "bloom": {},
    "falcon": {},
    "gemma": {**SMALL, "head_dim": 8, "pad_token_id": 0},
    "qwen2": SMALL,
    "mixtral": {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 1, "experts_implementation": "eager"},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_all_linear_modules_are_accepted(tmp_path, kind):
    load_policy(folder_of(tmp_path, kind, **KINDS[kind]), with_targets("all-linear")).verify()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("targets", ["lm_head", "q_proj, lm_head"])
def test_an_adapter_of_the_output_head_is_refused(tmp_path, targets, tied):
    """Its weight is read without a call of the module, so that the adapter would never be trained."""
    policy = load_policy(folder_of(tmp_path, "llama", **SMALL, tie_word_embeddings=tied), with_targets(targets))
    with pytest.raises(UserError, match=r"model\.lora\.targets: an adapter of lm_head would not be trained"):
        policy.verify()


def test_so_is_that_of_any_other_module_whose_weight_is_read_alone(tiny_model):
    policy = load_policy(tiny_model, with_targets("all-linear"))
    mlp = policy.model.model.layers[1].mlp
    mlp.forward = lambda x: nn.functional.linear(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x), mlp.down_proj.weight)
    with pytest.raises(UserError, match=r"an adapter of model\.layers\.1\.mlp\.down_proj would not be trained"):
        policy.verify()


def test_modules_that_take_no_part_may_have_adapters_if_others_do(tiny_model):
    policy = load_policy(tiny_model, ModelConfig())
    policy.model.model.unused = nn.Linear(32, 32)
    add_adapters(policy.model, with_targets("q_proj, unused"), 1)
    check_effect(policy.model, lambda: policy(BATCH))


def test_adapters_of_such_modules_alone_are_refused(tiny_model):
    policy = load_policy(tiny_model, ModelConfig())
    policy.model.model.unused = nn.Linear(32, 32)
    add_adapters(policy.model, with_targets("unused"), 1)
    with pytest.raises(UserError, match="log-probs depend on none of these modules"):
        check_effect(policy.model, lambda: policy(BATCH))


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_of_the_embedding_is_trained_and_comes_back(tmp_path, tied):
    folder, config = (
        folder_of(tmp_path / "model", "llama", **SMALL, tie_word_embeddings=tied),
        with_targets("embed_tokens"),
    )
    policy = load_policy(folder, config)
    before = policy(BATCH).detach()
    policy.verify()
    assert torch.equal(policy(BATCH), before), "the check leaves the adapters as they were"
    optimizer = torch.optim.SGD(policy.trained().values(), lr=1.0)
    for _ in range(2):  # one of the two factors is 0 at first, and the other one then has no gradient
        optimizer.zero_grad()
        policy(BATCH).sum().backward()
        optimizer.step()
    after = policy(BATCH).detach()
    assert (after - before).abs().min() > 1e-3
    policy.save(tmp_path / "trained")
    torch.testing.assert_close(load_policy(folder, config, [tmp_path / "trained"])(BATCH), after, atol=1e-5, rtol=1e-5)
