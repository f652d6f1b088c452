"""What is read from inside a model: its layers, its limits, and the feed-forward part of its last layer.

The last layer's feed-forward part is computed only at the positions that are read, with unchanged results there.
"""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, MixtralConfig

from harness.backbones.language_model.decoder import (
    context_of,
    dropout_rates,
    last_layers,
    layers_of,
    read_only_at,
)
from harness.core.errors import UserError

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
CONFIGS = {
    "one after the other": LlamaConfig(**SMALL, num_key_value_heads=1),
    "side by side with attention": GPTNeoXConfig(**SMALL, use_parallel_residual=True),
    "a mixture of experts": MixtralConfig(
        **SMALL, num_key_value_heads=1, num_local_experts=2, experts_implementation="eager"
    ),
    "layers of another name": GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2),
}
IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 0]])
READ = torch.tensor([2, 3, 6])


def decoder_of(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).get_decoder().double().eval()  # fp32 rounding depends on the CPU


def read_states(decoder):
    """Return the states at the positions that are read, and the gradients of a function of them."""
    decoder.zero_grad()
    states = decoder(input_ids=IDS, use_cache=False).last_hidden_state.flatten(0, 1)[READ]
    states.pow(3).sum().backward()
    return states.detach(), {n: p.grad for n, p in decoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", CONFIGS)
def test_states_that_are_read_and_gradients_are_those_of_the_whole_layer(kind):
    decoder = decoder_of(CONFIGS[kind])
    expected = read_states(decoder)
    with read_only_at(decoder, READ):
        restricted = read_states(decoder)
    torch.testing.assert_close(restricted, expected, atol=1e-10, rtol=1e-8)


def test_the_other_tokens_are_not_computed_and_afterwards_all_are():
    decoder = decoder_of(CONFIGS["one after the other"])
    seen = []
    decoder.layers[-1].mlp.down_proj.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:2]))
    with read_only_at(decoder, READ):
        decoder(input_ids=IDS)
    decoder(input_ids=IDS)
    assert seen == [(1, 3), (2, 5)]


# Decoders whose layers or final norm have other names than a Llama's.
OTHERS = {
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2},
    "gpt_neox": {},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "phi": {},
    "bloom": {},
    "mpt": {"d_model": 16, "n_layers": 3, "n_heads": 2},
    "falcon": {},
}


def model_of(kind, **changes):
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2} if "n_embd" not in changes else {}
    sizes = {} if "d_model" in changes else sizes
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=50, **{**sizes, **changes}))


@pytest.mark.parametrize("kind", OTHERS)
def test_layers_are_found_whatever_their_name_and_trained_alone_only_where_they_can_be(kind):
    """The layers are what FSDP shards one by one."""
    model = model_of(kind, **OTHERS[kind])
    assert len(layers_of(model)) == 3
    with pytest.raises(UserError, match=r"^tune: last_layers does not know the layers of \w+; use lora or full$"):
        last_layers(model, 1)


def test_the_last_layers_are_those_with_the_final_norm():
    model = model_of("llama", intermediate_size=32, num_key_value_heads=1)
    assert last_layers(model, 2) == [*model.model.layers[1:], model.model.norm]


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("kind", "settings", "context"),
    [
        ("llama", {"max_position_embeddings": 300}, 300),
        ("gpt2", {"n_positions": 300}, 300),
        ("mpt", {"max_seq_len": 300}, 300),
        ("mamba", {}, None),
        (
            "phi3",
            {
                "max_position_embeddings": 4000,
                "original_max_position_embeddings": 300,
                "rope_parameters": {**LONGROPE, "original_max_position_embeddings": 300},
                "hidden_size": 32,
                "num_attention_heads": 4,
                "pad_token_id": 0,
            },
            300,
        ),
        ("llama", {"max_position_embeddings": 4000, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 4000),
        (
            "llama",
            {
                "max_position_embeddings": 4000,
                "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1000},
            },
            4000,
        ),
    ],
)
def test_the_context_is_as_long_as_log_probs_are_those_of_a_sequence_alone(kind, settings, context):
    """With YaRN the frequencies are the same for short and for long sequences, with longrope they are not."""
    assert context_of(AutoConfig.for_model(kind, **settings)) == context


@pytest.mark.parametrize(
    ("kind", "rates"),
    [
        ("gpt2", {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}),
        ("llama", {"attention_dropout": 0.0}),
        ("opt", {"dropout": 0.1, "attention_dropout": 0.0}),
        ("bloom", {"hidden_dropout": 0.0, "attention_dropout": 0.0}),
        ("mamba", {}),
    ],
)
def test_the_rates_of_dropout_are_those_of_the_layers_that_are_used(kind, rates):
    """Not those of heads for other tasks, such as `summary_first_dropout` or `classifier_dropout`."""
    assert dropout_rates(AutoConfig.for_model(kind)) == rates
