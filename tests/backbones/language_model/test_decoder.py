"""The last layer's feed-forward part is computed only at the positions that are read, with unchanged results there."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, MixtralConfig

from harness.backbones.language_model.decoder import read_only_at

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
