"""KL estimators and entropy against enumeration of every sequence of a tiny vocabulary."""

import itertools

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.backbones.language_model.measure import divergences
from harness.backbones.language_model.policy import LanguageModel
from harness.backbones.language_model.sampling import Drawing, sample
from harness.backbones.language_model.scoring import BatchSource
from harness.backbones.language_model.tokens import Tokens
from harness.core.config import ModelConfig, SampleConfig

VOCABULARY, LENGTH, PROMPT = 5, 3, (1, 2)


def tiny_policy(seed: int, tune: str = "full") -> LanguageModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=1.0,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LanguageModel(LlamaForCausalLM(config), ModelConfig(tune=tune, last_layers=1)).eval()


@pytest.fixture
def every_sequence() -> BatchSource:
    completions = itertools.product(range(VOCABULARY), repeat=LENGTH)
    return BatchSource([Tokens(PROMPT, c) for c in completions], pad_token=0, budget=100)


@pytest.fixture
def enumerated(every_sequence) -> dict:
    """Policy and reference, the probability of every sequence, and the sequence KL and entropy by definition."""
    policy, reference = tiny_policy(0), tiny_policy(1)
    every = range(len(every_sequence.sequences))
    ours, theirs = (s.sums(every).double().numpy() for s in every_sequence.score([policy, reference]))
    p = np.exp(ours)
    assert p.sum() == pytest.approx(1, abs=1e-5)
    return {
        "policy": policy,
        "reference": reference,
        "p": p,
        "plain": ours - theirs,
        "kl": float(p @ (ours - theirs)),
        "entropy": float(-p @ ours),
    }


def test_in_expectation_over_all_sequences_it_is_the_sequence_kl_and_the_entropy(enumerated, every_sequence):
    kl, entropy = divergences(enumerated["policy"], enumerated["reference"], every_sequence)
    assert enumerated["kl"] > 0.1
    assert enumerated["p"] @ kl == pytest.approx(enumerated["kl"], rel=1e-4)
    assert enumerated["p"] @ entropy == pytest.approx(enumerated["entropy"], rel=1e-4)


def test_it_varies_less_than_the_plain_estimate_and_is_never_negative(enumerated, every_sequence):
    kl, _ = divergences(enumerated["policy"], enumerated["reference"], every_sequence)
    variance = {
        n: enumerated["p"] @ (v - enumerated["kl"]) ** 2 for n, v in (("exact", kl), ("plain", enumerated["plain"]))
    }
    assert variance["exact"] < variance["plain"]
    assert (kl >= 0).all() and (enumerated["plain"] < 0).any()


def test_on_the_policy_s_own_samples_both_estimates_are_within_their_error(enumerated):
    policy, n = enumerated["policy"], 2000
    decoding = SampleConfig(temperature=1.0, top_p=1.0, max_new_tokens=LENGTH, batch_size=n)
    drawn = sample(policy.model, [PROMPT] * n, [str(i) for i in range(n)], Drawing(decoding, 0, [], 0))
    source = BatchSource([Tokens(PROMPT, s.ids) for s in drawn], pad_token=0, budget=10**5)
    ours, theirs = (s.sums(range(n)).double().numpy() for s in source.score([policy, enumerated["reference"]]))
    kl, _ = divergences(policy, enumerated["reference"], source)
    for estimate in (ours - theirs, kl):
        assert abs(estimate.mean() - enumerated["kl"]) < 4 * estimate.std() / np.sqrt(n)


@pytest.mark.parametrize("tune", ["full", "last_layers"])
def test_a_policy_that_is_its_reference_has_kl_0(every_sequence, tune):
    kl, entropy = divergences(tiny_policy(0, tune), tiny_policy(0, tune), every_sequence)
    np.testing.assert_allclose(kl, 0, atol=1e-6)
    assert (entropy > 0).all()


def test_it_does_not_depend_on_how_sequences_are_batched(enumerated, every_sequence):
    alone = BatchSource(every_sequence.sequences, pad_token=3, budget=1)
    for batched, unbatched in zip(
        divergences(enumerated["policy"], enumerated["reference"], every_sequence),
        divergences(enumerated["policy"], enumerated["reference"], alone),
        strict=True,
    ):
        np.testing.assert_allclose(batched, unbatched, atol=1e-5)
