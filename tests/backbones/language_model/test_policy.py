"""The policy: what is trained, what is saved, and that it comes back as it was."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    BertGenerationConfig,
    BertGenerationDecoder,
    ElectraConfig,
    ElectraForCausalLM,
    RwkvConfig,
)

from harness.backbones.language_model.policy import TENSORS, LanguageModel, load_policy, model_settings
from harness.backbones.language_model.rows import collate
from harness.backbones.language_model.scoring import BatchSource, trunk_activations
from harness.backbones.language_model.tokens import Tokens
from harness.core.config import ModelConfig
from harness.core.errors import UserError
from harness.core.store import Store

SEQUENCES = [Tokens((5, 6, 7), (8, 9)), Tokens((10, 11), (12, 13, 14, 15, 16, 17))]
IDS = torch.arange(20)[None]


def nudge(policy):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trained().values():
            parameter.add_(0.05 * torch.randn_like(parameter))


def logits(policy):
    with torch.no_grad():
        return policy.model(IDS).logits


@pytest.mark.parametrize("tune", ["full", "last_layers", "lora"])
def test_what_was_trained_comes_back(tiny_model, tmp_path, tune):
    config = ModelConfig(tune=tune, last_layers=1)
    policy = load_policy(tiny_model, config)
    before = logits(policy)
    nudge(policy)
    policy.save(tmp_path)
    again = load_policy(tiny_model, config, [tmp_path])
    assert not torch.allclose(before, logits(policy))
    torch.testing.assert_close(logits(again), logits(policy), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tune", ["full", "last_layers", "lora"])
def test_loading_leaves_the_random_state_as_it_was(tiny_model, tune):
    torch.manual_seed(4)
    before = torch.get_rng_state()
    one, other = (load_policy(tiny_model, ModelConfig(tune=tune, last_layers=1), seed=seed) for seed in (3, 5))
    assert torch.equal(torch.get_rng_state(), before)
    same = [torch.equal(p, q) for p, q in zip(one.trained().values(), other.trained().values(), strict=True)]
    assert not all(same) if tune == "lora" else all(same), "the seed is that of new adapters"


@pytest.mark.parametrize("tune", ["full", "last_layers", "lora"])
def test_a_value_head_says_zero_at_first_and_is_trained_but_not_saved(tiny_model, tmp_path, tune):
    config = ModelConfig(tune=tune, last_layers=1)
    policy, batch = load_policy(tiny_model, config), collate(SEQUENCES, 2)
    if policy.trunk is not None:
        batch.hidden = policy.trunk_activations(batch)
    names, state = set(policy.trained()), torch.get_rng_state()
    policy.add_value_head()
    assert torch.equal(torch.get_rng_state(), state), "dropout falls as it does without one"
    assert set(policy.trained()) - names == {"value_head.weight", "value_head.bias"}
    logps, values = policy.with_values(batch)
    assert torch.equal(logps, policy(batch)) and not values.any()
    nudge(policy)
    policy.with_values(batch)[1].sum().backward()
    assert policy.value_head.weight.grad.any()
    grads = [policy.trained()[name].grad for name in names]
    assert not any(grad.any() for grad in grads if grad is not None), "what it learns does not move the policy"
    policy.save(tmp_path)
    assert set(load_file(tmp_path / TENSORS)) == names
    again = load_policy(tiny_model, config, [tmp_path])
    torch.testing.assert_close(logits(again), logits(policy), atol=1e-4, rtol=1e-4)


def test_values_are_in_fp32_whatever_the_model_computes_in(tiny_model):
    policy = load_policy(tiny_model, ModelConfig(tune="lora", dtype="bfloat16"))
    policy.add_value_head()
    assert policy.with_values(collate(SEQUENCES, 2)).dtype == policy.value_head.weight.dtype == torch.float32


def test_in_bf16_a_small_adapter_is_not_rounded_away(tiny_model, tmp_path):
    """Merged into bf16 weights, a change of a thousandth of a weight would be lost."""
    config = ModelConfig(tune="lora", dtype="bfloat16")
    policy = load_policy(tiny_model, config)
    torch.manual_seed(0)
    for name, parameter in policy.trained().items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1e-3)
    policy.save(tmp_path)
    again = load_policy(tiny_model, config, [tmp_path])
    batch = collate(SEQUENCES, 2)
    torch.testing.assert_close(again(batch), policy(batch), atol=1e-6, rtol=0)
    assert not torch.equal(again(batch), load_policy(tiny_model, config)(batch))


def test_last_layers_trains_those_and_the_final_norm_alone(tiny_model):
    names = set(load_policy(tiny_model, ModelConfig(tune="last_layers", last_layers=1)).trained())
    assert names and all(name.startswith(("model.layers.2.", "model.norm.")) for name in names)


def test_a_fresh_adapter_on_top_of_the_sft_adapter_starts_at_the_sft_model_and_not_at_the_base(tiny_model, tmp_path):
    config = ModelConfig(tune="lora")
    sft = load_policy(tiny_model, config)
    nudge(sft)
    sft.save(tmp_path)
    start = load_policy(tiny_model, config, [tmp_path], seed=7)
    torch.testing.assert_close(logits(start), logits(sft), atol=1e-4, rtol=1e-4)
    assert all("lora" in name for name in start.trained())
    assert not torch.allclose(logits(start), logits(load_policy(tiny_model, config)), atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_last_layers_over_stored_activations_equal_the_whole_model(tiny_model, tmp_path, dtype):
    config = ModelConfig(tune="last_layers", last_layers=1, dtype=dtype)
    policy = load_policy(tiny_model, config)
    bare = BatchSource(SEQUENCES, pad_token=2, budget=100)
    trunk = trunk_activations(Store(tmp_path), lambda: policy, "hash", config, bare, lambda done, total: None)
    stored = BatchSource(SEQUENCES, pad_token=2, budget=100, trunk=trunk)
    batch = stored.batch([0, 1], policy)
    assert batch.hidden is not None
    expected = policy(bare.batch([0, 1], policy))
    torch.testing.assert_close(policy(batch), expected, atol=1e-5 if dtype == "float32" else 0.05, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_trained_is_kept_in_fp32(tiny_model, dtype):
    policy = load_policy(tiny_model, ModelConfig(tune="last_layers", last_layers=1, dtype=dtype))
    assert {p.dtype for p in policy.trained().values()} == {torch.float32}
    assert policy(collate(SEQUENCES, 2)).dtype == torch.float32
    policy.verify()


def test_log_probs_do_not_depend_on_padding(tiny_model):
    policy = load_policy(tiny_model, ModelConfig())
    (together,) = BatchSource(SEQUENCES, pad_token=2, budget=1000).score([policy])
    (apart,) = BatchSource(SEQUENCES, pad_token=7, budget=1).score([policy])
    torch.testing.assert_close(torch.from_numpy(together.values), torch.from_numpy(apart.values), atol=1e-5, rtol=1e-5)


def test_a_model_whose_logits_are_not_those_of_its_last_hidden_state_is_refused(tiny_model):
    policy = load_policy(tiny_model, ModelConfig())
    forward = policy.model.forward

    def capped(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits.tanh()
        return output

    policy.model.forward = capped
    with pytest.raises(UserError, match="differ from its own logits"):
        policy.verify()


def test_a_model_that_sees_later_tokens_is_refused(tmp_path):
    """Alone in its row, a sequence would pass: its own logits see later tokens too. Padding gives it away."""
    config = BertGenerationConfig(
        vocab_size=600, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.5
    )
    torch.manual_seed(0)
    BertGenerationDecoder(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model bert-generation: log-probs .* in a batch differ from its own logits"):
        load_policy(tmp_path, ModelConfig()).verify()


def test_a_model_whose_head_does_not_read_its_last_hidden_state_is_refused(tmp_path):
    """ELECTRA's head begins with a layer of its own, so that the sizes do not fit."""
    config = ElectraConfig(vocab_size=600, hidden_size=32, embedding_size=16, num_hidden_layers=1, is_decoder=True)
    ElectraForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"^model electra: mat1 and mat2 shapes cannot be multiplied"):
        load_policy(tmp_path, ModelConfig()).verify()


def test_more_trained_layers_than_there_are_is_the_user_s_to_mend(tiny_model):
    with pytest.raises(UserError, match="last_layers=3, but the model has 3 layers; use tune: full"):
        load_policy(tiny_model, ModelConfig(tune="last_layers", last_layers=3))


def test_unknown_lora_targets_are_the_user_s_to_mend(tiny_model):
    config = ModelConfig(tune="lora")
    config.lora.targets = "no_such_layer"
    with pytest.raises(UserError, match=r"model\.lora: .*no_such_layer"):
        load_policy(tiny_model, config)


def test_tensors_of_another_model_are_refused(tiny_model, tmp_path):
    from safetensors.torch import save_file

    save_file({"model.layers.9.weight": torch.zeros(1)}, tmp_path / TENSORS)
    with pytest.raises(UserError, match=r"do not fit the model: it has no 'model\.layers\.9\.weight'"):
        load_policy(tiny_model, ModelConfig(), [tmp_path])


def test_a_broken_configuration_is_named(tiny_model, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_model, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(UserError, match="broken"):
        load_policy(folder, ModelConfig())


def test_settings_are_read_without_the_weights(tiny_model):
    assert model_settings(tiny_model, ModelConfig()).max_position_embeddings == 512


def test_a_model_that_changes_its_own_weights_for_evaluation_is_refused():
    """RWKV halves weights of later layers for evaluation: saved then, they would be halved again when loaded."""
    settings = {"vocab_size": 40, "hidden_size": 16, "attention_hidden_size": 16, "num_hidden_layers": 3}
    halved, plain = (
        LanguageModel(AutoModelForCausalLM.from_config(RwkvConfig(**settings, rescale_every=every)), ModelConfig())
        for every in (2, 0)
    )
    plain.eval().verify()
    with pytest.raises(UserError, match=r"changes its own weights for evaluation, .*set rescale_every to 0"):
        halved.eval().verify()
