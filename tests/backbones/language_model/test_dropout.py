"""The model's own dropout is off unless it is set. With dropout, a gradient depends on how the batch is cut."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from harness.backbones.language_model.policy import check_folder, load_policy
from harness.core.config import ModelConfig
from harness.core.errors import UserError
from tests.training.test_objective import gradient, relative_difference

BUDGETS = [10**6, 60, 1]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A model whose configuration has the dropout of GPT-2: 0.1."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=600, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2)
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0.1
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def losses(bench, folder, config: ModelConfig, loss: str = "dpo") -> list[float]:
    """Return the loss of the first step, in training, for each way of cutting the batch."""
    bench.start = load_policy(folder, config)
    values = []
    for budget in BUDGETS:
        bench.policy = load_policy(folder, config)
        torch.manual_seed(3)
        values.append(bench.objective(loss, budget=budget).backward(bench.batch(loss))["loss"])
    return values


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize("loss", ["dpo", "rpo_paired"])
def test_a_models_own_dropout_is_off_in_training(bench, gpt2, tune, loss):
    """DPO's loss is log 2 where the policy is its reference, however the batch is cut."""
    first, *others = losses(bench, gpt2, ModelConfig(tune=tune), loss)
    assert others == pytest.approx([first] * 2, abs=1e-5)
    if loss == "dpo":
        assert first == pytest.approx(math.log(2), abs=1e-5)


def test_it_is_what_is_set_whatever_the_configuration_says(gpt2, tiny_model):
    def rates(folder, dropout):
        policy = load_policy(folder, ModelConfig(dropout=dropout)).train()
        return {module.p for module in policy.modules() if isinstance(module, torch.nn.Dropout) and module.training}

    assert (rates(gpt2, 0.0), rates(gpt2, 0.3)) == (set(), {0.3})
    attention = load_policy(tiny_model, ModelConfig(dropout=0.3)).train().model.model.layers[0].self_attn
    assert attention.training and attention.attention_dropout == 0.3


def test_a_model_without_dropout_cannot_have_it_set(tmp_path):
    from tests.backbones.language_model.test_adapters import folder_of

    folder = folder_of(tmp_path, "mamba", num_attention_heads=None)
    check_folder(folder, ModelConfig())
    with pytest.raises(UserError, match=r"model\.dropout=0\.1: the model in .* has no dropout of its own"):
        check_folder(folder, ModelConfig(dropout=0.1))


def dropping(kind: str) -> ModelConfig:
    config = ModelConfig(tune="lora", dropout=0.1 if kind == "the model's" else 0.0)
    config.lora.dropout = 0.3 if kind == "LoRA's" else 0.0
    return config


@pytest.mark.parametrize("kind", ["LoRA's", "the model's"])
def test_with_dropout_a_gradient_depends_on_how_the_batch_is_cut_and_on_nothing_else(bench, gpt2, kind):
    """What is dropped is drawn for each forward pass, as the README and the configuration say."""
    gradients = []
    for budget in [10**6, 10**6, 60]:
        bench.policy = load_policy(gpt2, dropping(kind))
        torch.manual_seed(3)
        gradients.append(gradient(bench.objective("dpo", budget=budget), bench.batch("dpo"))[1])
    assert relative_difference(gradients[1], gradients[0]) == 0
    assert relative_difference(gradients[2], gradients[0]) > 0.01


@pytest.mark.parametrize("kind", ["LoRA's", "the model's"])
def test_nothing_is_dropped_where_nothing_is_trained(bench, gpt2, kind):
    """Log-probs of reference, dev pairs and samples, and the check of step 0, are without dropout."""
    bench.start = bench.policy = load_policy(gpt2, dropping(kind))
    objective = bench.objective("dpo", budget=60)
    bench.policy.train()
    objective.check_start(bench.batch("dpo"))
    bench.policy.train()
    scored = [bench.source(budget).score([bench.policy])[0].values for budget in BUDGETS]
    for values in scored[1:]:
        torch.testing.assert_close(torch.from_numpy(values), torch.from_numpy(scored[0]), atol=1e-5, rtol=1e-5)
