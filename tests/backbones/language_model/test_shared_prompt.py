"""Completions of one prompt may share a row. Log-probs, gradients and stored activations are those of separate rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from harness.backbones.language_model.policy import LanguageModel, load_policy
from harness.backbones.language_model.rows import collate
from harness.backbones.language_model.scoring import BatchSource, trunk_activations
from harness.backbones.language_model.sft import train_sft
from harness.backbones.language_model.shared_prompt import why_apart
from harness.backbones.language_model.tokens import Tokens
from harness.core.config import ModelConfig
from harness.core.store import Store
from harness.training.base import Job
from harness.training.batch import effective_batches
from losses import get_loss
from tests.training.test_objective import gradient, relative_difference

TUNES = ["full", "last_layers", "lora"]


def lists(prompts: int, completions: int, seed: int = 0) -> list[Tokens]:
    """Return sequences of very different lengths: `completions` for each prompt. The first prompt occurs twice."""
    rng = np.random.default_rng(seed)

    def ids(low, high):
        return tuple(rng.integers(3, 500, rng.integers(low, high)).tolist())

    heads = [ids(6, 25) for _ in range(prompts)]
    return [Tokens(head, ids(1, 20)) for head in [*heads, heads[0]] for _ in range(completions)]


def tuned(folder, tune: str, dtype: str = "float32") -> LanguageModel:
    """Return a policy with slightly changed weights. New adapters have no effect yet and would hide an error."""
    policy = load_policy(folder, ModelConfig(tune=tune, last_layers=1, dtype=dtype))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trained().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return policy


@pytest.mark.parametrize("tune", TUNES)
@pytest.mark.parametrize("completions", [1, 2, 5])
def test_log_probs_and_gradients_are_those_of_rows_of_their_own(tiny_model, tune, completions):
    policy, sequences = tuned(tiny_model, tune), lists(4, completions)
    weights = torch.randn(sum(len(s.completion) for s in sequences), generator=torch.Generator().manual_seed(1))
    results = []
    for shared in (False, True):
        batch = collate(sequences, 2, shared=shared)
        policy.zero_grad()
        logps = policy(batch)
        (logps * weights).sum().backward()
        results.append((logps.detach(), torch.cat([p.grad.flatten() for p in policy.trained().values()])))
    assert (len(batch.input_ids) < len(sequences)) == (completions > 1)
    for ours, expected in zip(results[1], results[0], strict=True):
        assert relative_difference(ours, expected) < 1e-5


@pytest.mark.parametrize("loss", ["dpo", "rpo_paired", "rpo_unpaired"])
@pytest.mark.parametrize("budget", [1, 60, 10**6])
def test_an_objective_has_the_same_loss_and_gradient(bench, loss, budget):
    """A loss that does not couple examples, one that does, and one of unpaired sides."""
    (batch,) = effective_batches(bench.examples, batch_size=8, data=get_loss(loss).data, seed=0, epoch=0)
    apart, expected = gradient(bench.objective(loss), batch)
    objective = bench.objective(loss, budget=budget)
    objective.supply.source.shared = True
    together, ours = gradient(objective, batch)
    assert together["loss"] == pytest.approx(apart["loss"], rel=1e-5)
    assert relative_difference(ours, expected) < 1e-5


@pytest.mark.parametrize("tune", TUNES)
@pytest.mark.parametrize("budget", [1, 100, 10**6])
def test_scores_are_in_the_order_of_the_sequences(tiny_model, tune, budget):
    policy, sequences = tuned(tiny_model, tune), lists(4, 3)
    (apart,) = BatchSource(sequences, 2, budget=1).score([policy])
    (together,) = BatchSource(sequences, 2, budget, shared=True).score([policy])
    np.testing.assert_allclose(together.values, apart.values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_frozen_layers_store_each_prompt_once_whatever_the_layout(tiny_model, tmp_path, dtype):
    config = ModelConfig(tune="last_layers", last_layers=1, dtype=dtype)
    policy, sequences = tuned(tiny_model, "last_layers", dtype), lists(4, 3)
    stored, logps = [], []
    for shared in (False, True):
        bare = BatchSource(sequences, 2, 150, shared=shared)
        store = Store(tmp_path / str(shared))
        trunk = trunk_activations(store, lambda: policy, "hash", config, bare, lambda done, total: None)
        stored.append(np.load(trunk.path / "hidden.npy"))
        for reading in (False, True):  # each layout reads what the other one wrote
            logps.append(BatchSource(sequences, 2, 150, reading, trunk).score([policy])[0].values)
    prompts = {s.prompt for s in sequences}
    assert stored[0].shape == stored[1].shape
    assert len(stored[0]) == sum(map(len, prompts)) + sum(len(s.completion) for s in sequences)
    expected = BatchSource(sequences, 2, budget=1).score([policy])[0].values
    tolerance = 1e-5 if dtype == "float32" else 0.1
    for values in logps:
        np.testing.assert_allclose(values, expected, rtol=tolerance, atol=tolerance)


def test_sft_ends_with_the_same_weights(tiny_model, tmp_path):
    from accelerate import Accelerator

    from harness.core.config import SftConfig

    sequences, ends = lists(3, 2), []
    for shared in (False, True):
        policy = load_policy(tiny_model, ModelConfig())
        (tmp_path / str(shared)).mkdir()
        train_sft(
            policy,
            range(len(sequences)),
            BatchSource(sequences, 2, 10**6, shared),
            SftConfig(lr=1e-2, optimizer="adamw", batch_size=4),
            Job(Accelerator(cpu=True), tmp_path / str(shared)),
        )
        ends.append(torch.cat([p.detach().flatten() for p in policy.trained().values()]))
    assert relative_difference(ends[1], ends[0]) < 1e-4


# ------------------------------------------------------------------ where rows cannot be shared


@pytest.mark.parametrize("tune", TUNES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_llama_takes_completions_of_a_prompt_in_one_row(tiny_model, tune, dtype):
    assert why_apart(tuned(tiny_model, tune, dtype), lists(3, 2), 2) is None


def test_a_model_whose_attention_ignores_the_mask_keeps_completions_apart(tiny_model):
    policy = load_policy(tiny_model, ModelConfig())
    decoder = policy.model.get_decoder()
    forward = decoder.forward
    decoder.forward = lambda attention_mask=None, position_ids=None, **inputs: forward(
        position_ids=position_ids, **inputs
    )
    assert "hidden states differ by" in why_apart(policy, lists(3, 2), 2)


def test_a_model_without_positions_of_ones_own_keeps_completions_apart(tiny_model):
    policy = load_policy(tiny_model, ModelConfig())
    decoder = policy.model.get_decoder()
    forward = decoder.forward
    decoder.forward = lambda input_ids, use_cache, attention_mask=None: forward(
        input_ids=input_ids, use_cache=use_cache
    )
    assert why_apart(policy, lists(3, 2), 2) == "it takes no position ids"


@pytest.mark.parametrize("error", [NotImplementedError(), ValueError("two\nlines")])
def test_whatever_a_model_raises_completions_are_kept_apart(tiny_model, error):
    policy = load_policy(tiny_model, ModelConfig())

    def forward(input_ids, use_cache, position_ids=None, attention_mask=None):
        raise error

    policy.model.get_decoder().forward = forward
    reason = why_apart(policy, lists(3, 2), 2)
    assert reason.startswith(f"it does not run ({type(error).__name__}:") and "\n" not in reason


def test_a_model_that_does_not_run_with_a_mask_of_ones_own_keeps_completions_apart(tiny_model):
    policy = load_policy(tiny_model, ModelConfig())
    decoder = policy.model.get_decoder()
    forward = decoder.forward
    decoder.forward = lambda input_ids, use_cache, position_ids=None: forward(input_ids=input_ids, use_cache=use_cache)
    assert "it does not run (TypeError" in why_apart(policy, lists(3, 2), 2)


def config_of(kind: str, **changes):
    from transformers import AutoConfig

    sizes = {"vocab_size": 500, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return AutoConfig.for_model(kind, **{**sizes, **changes})


def random_policy(config) -> LanguageModel:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return LanguageModel(model, ModelConfig()).eval()


# Contexts so short that a shared row is longer than one, though no sequence is.
CONTEXT = 45
SMALL = {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": CONTEXT}
EXPERTS = {**SMALL, "num_experts_per_tok": 2, "experts_implementation": "eager"}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": CONTEXT,
}
SHARING = {
    "llama": SMALL,
    "llama with dynamic RoPE": {**SMALL, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0}},
    "phi3 with longrope": {
        **SMALL,
        "pad_token_id": 0,
        "max_position_embeddings": 8 * CONTEXT,
        "original_max_position_embeddings": CONTEXT,
        "rope_parameters": LONGROPE,
    },
    "gpt2 with learned positions": {"n_positions": CONTEXT},
    "opt with learned positions": {"max_position_embeddings": CONTEXT, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "gpt_neox": {"max_position_embeddings": CONTEXT, "intermediate_size": 64},
    "phi": SMALL,
    "qwen2": SMALL,
    "qwen3": {**SMALL, "head_dim": 8},
    "gemma": {**SMALL, "head_dim": 8, "pad_token_id": 0},
    "mixtral": {**EXPERTS, "num_local_experts": 4},
    "qwen3_moe": {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 32, "head_dim": 8},
    "olmo2": {**SMALL, "pad_token_id": 0},
    "falcon": {},
    "stablelm": SMALL,
    "starcoder2": SMALL,
}


@pytest.mark.parametrize("kind", SHARING)
def test_log_probs_are_those_of_rows_of_their_own_where_a_row_is_longer_than_the_context(kind):
    """RoPE may depend on the largest position of a pass, so padding must not have a larger one than any sequence."""
    policy, sequences = random_policy(config_of(kind.split()[0], **SHARING[kind])), lists(3, 4)
    assert max(map(len, sequences)) <= CONTEXT < max(collate(sequences, 2, shared=True).input_ids.shape)
    assert why_apart(policy, sequences, 2) is None
    (apart,) = BatchSource(sequences, 2, budget=1).score([policy])
    for budget in (100, 10**6):
        (together,) = BatchSource(sequences, 2, budget, shared=True).score([policy])
        np.testing.assert_allclose(together.values, apart.values, rtol=1e-4, atol=1e-4)


def test_what_changes_in_long_rows_alone_is_seen_by_the_trial():
    """Llama 4 scales attention by the place in the row, from the 60th on. The first prompts' rows are shorter."""
    experts = {"num_local_experts": 2, "intermediate_size_mlp": 64, "head_dim": 8, "pad_token_id": 0}
    config = config_of("llama4_text", **SMALL, **experts, no_rope_layers=[0, 0], floor_scale=60, attn_scale=2.0)
    policy = random_policy(config)
    short = [Tokens((5 + i, *range(20)), tuple(range(10 + size))) for i in range(4) for size in (0, 1)]
    assert why_apart(policy, short, 2) is None
    long = [*short, *(Tokens(tuple(range(9, 30)), tuple(range(10 + size))) for size in range(9))]
    assert "hidden states differ by" in why_apart(policy, long, 2)


@pytest.mark.parametrize("kind", ["mamba", "bloom", "mpt", "bart"])
def test_recurrent_layers_and_positions_of_a_row_keep_completions_apart(kind):
    """Mamba has a state instead of attention. ALiBi (Bloom, MPT) uses places in a row, and so do BART's positions."""
    assert why_apart(random_policy(config_of(kind)), lists(3, 2), 2) is not None


def test_a_window_shorter_than_a_sequence_keeps_completions_apart():
    """A window of 30 covers a whole sequence of 29 tokens, but only a part of one of 45 tokens."""
    policy = random_policy(config_of("mistral", num_key_value_heads=2, intermediate_size=64, sliding_window=30))
    short = [Tokens(tuple(range(20)), tuple(range(size))) for size in (9, 5)]
    assert why_apart(policy, short, 2) is None
    long = [*short, Tokens(tuple(range(40)), tuple(range(5)))]
    assert why_apart(policy, long, 2) == "its attention looks back 30 tokens, and a sequence has 45"


def test_another_attention_than_sdpa_keeps_completions_apart(tiny_model):
    policy = load_policy(tiny_model, ModelConfig())
    policy.model.set_attn_implementation("eager")
    assert why_apart(policy, lists(3, 2), 2) == "its attention is 'eager', not 'sdpa'"
