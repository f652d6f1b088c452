"""Every kind of cache: single steps, which a row leaves, give the model's own logits, or another way is taken."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from harness.backbones.language_model.policy import LanguageModel, load_policy
from harness.backbones.language_model.sampling import Drawing, sample
from harness.backbones.language_model.stepping import Cached, Reread, steps_of
from harness.core.config import ModelConfig, SampleConfig
from harness.core.errors import UserError

PAD = 0
SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
DELTA = {
    "head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
SSM = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
TWO_KINDS = ["mamba", "attention"] * 2

# One architecture for each kind of cache that transformers has, and those that differ in how they use it.
CACHED = {
    # keys and values; in a window; in a window in some layers only; with learned positions; with ALiBi
    "llama": {},
    "phi3": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "bloom": {"n_layer": 2, "n_head": 4},
    # latent keys and values
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 32,
    },
    # convolution and recurrent states, under another name
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "falcon_mamba": {"state_size": 8, "time_step_rank": 4},
    # states in some layers, keys and values in others
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "bamba": {"attn_layer_indices": [1, 3], **SSM},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "qwen3_next": {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3_5_text": DELTA,
    "granitemoehybrid": {
        "layer_types": TWO_KINDS,
        "shared_intermediate_size": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        **SSM,
    },
    # both in one layer
    "falcon_h1": {"mamba_d_ssm": 64, **SSM},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "num_mem_blocks": 1,
        "num_key_value_heads": 4,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "mamba_d_state": 8,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "mamba_ngroups": 1,
        "chunk_size": 8,
    },
}
# A state that is padded, no cache under a name that is known, a cache of its own.
REREAD = {
    "recurrent_gemma": {
        "block_types": ["recurrent", "recurrent", "attention"],
        "num_hidden_layers": 3,
        "lru_width": 32,
    },
    "rwkv": {"attention_hidden_size": 32, "rescale_every": 0},
    "minimax": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
}


def settings_of(kind: str) -> AutoConfig:
    """Return the configuration of a tiny model."""
    known = AutoConfig.for_model(kind)
    common = {name: value for name, value in SIZES.items() if hasattr(known, name)}
    return AutoConfig.for_model(kind, **(common | {**CACHED, **REREAD}[kind]))


def policy_of(kind: str, dtype: str = "float32") -> LanguageModel:
    """Return a tiny model whose tokens depend on all that precedes them."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(settings_of(kind))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and kind != "rwkv":
                parameter.normal_(0, 0.2)
    return LanguageModel(model.to(getattr(torch, dtype)), ModelConfig(dtype=dtype)).eval()


@torch.no_grad()
def greedy(model, prompt: tuple[int, ...], count: int, stop: int) -> tuple[int, ...]:
    """Return the likeliest tokens, each from a forward pass over the whole sequence, up to a stop token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + count and (len(ids) == len(prompt) or ids[-1] != stop):
        ids.append(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("kind", [*CACHED, *REREAD])
def test_samples_follow_the_model_s_own_logits_whatever_its_cache(kind):
    """Prompts of three lengths share a batch, and the first row leaves it after its second token."""
    policy, prompts = policy_of(kind), [(11, 12, 13), (20, 9, 31, 14, 40, 7, 33), (5, 44, 6, 21)]
    steps = steps_of(policy, PAD)
    assert steps is (Cached if kind in CACHED else Reread)
    stop = greedy(policy.model, prompts[0], 2, stop=-1)[-1]
    decoding = SampleConfig(temperature=0.0, max_new_tokens=9, batch_size=3)
    drawn = sample(policy.model, prompts, ["a", "b", "c"], Drawing(decoding, 0, [stop], PAD, steps))
    assert [s.ids for s in drawn] == [greedy(policy.model, prompt, 9, stop) for prompt in prompts]
    assert len(drawn[0].ids) <= 2 < max(len(s.ids) for s in drawn)


@pytest.mark.parametrize("kind", ["llama", "mamba", "qwen3_next", "minimax"])
def test_rounding_in_bf16_is_no_reason_to_read_again(kind):
    assert steps_of(policy_of(kind, "bfloat16"), PAD) is (Cached if kind in CACHED else Reread)


@pytest.mark.parametrize("kind", ["rwkv", "recurrent_gemma"])
def test_a_cache_that_loses_the_prompt_or_sees_padding_is_found_in_bf16_too(kind):
    assert steps_of(policy_of(kind, "bfloat16"), PAD) is Reread


def test_a_row_that_is_read_again_does_not_depend_on_its_batch():
    policy, prompts = policy_of("llama"), [(11, 12, 13), (20, 9, 31, 14, 40, 7, 33), (5, 44, 6, 21)]
    stop = list(range(2, 48, 5))
    drawn = []
    for steps in (Cached, Reread):
        for batch_size in (1, 3):
            decoding = SampleConfig(max_new_tokens=12, batch_size=batch_size)
            drawn.append(sample(policy.model, prompts, ["a", "b", "c"], Drawing(decoding, 0, stop, PAD, steps)))
    assert all(samples == drawn[0] for samples in drawn)


def test_a_model_that_sees_what_follows_is_refused():
    settings = AutoConfig.for_model(
        "bert", vocab_size=48, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    torch.manual_seed(0)
    policy = LanguageModel(AutoModelForCausalLM.from_config(settings), ModelConfig())
    with pytest.raises(
        UserError, match=r"model bert: it cannot be sampled, neither with its cache \(.*%.*\) nor without"
    ):
        steps_of(policy, PAD)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize(
    "asked", [{"output_router_logits": True}, {"return_dict": False}, {"output_hidden_states": True}]
)
def test_what_a_configuration_asks_to_be_returned_as_well_does_not_matter(tmp_path, kind, asked):
    settings = AutoConfig.for_model(kind, **SIZES, num_local_experts=4, **EXPERTS, head_dim=8)
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | asked))
    policy = load_policy(tmp_path, ModelConfig())
    policy.verify()
    assert steps_of(policy, PAD) is Cached
    drawing = Drawing(SampleConfig(max_new_tokens=4, batch_size=2), 0, [2], PAD)
    assert all(s.ids for s in sample(policy.model, [(5, 6, 7), (8, 9)], ["a", "b"], drawing))
