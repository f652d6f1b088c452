"""Sampling: explicit decoding, noise that belongs to the prompt, and no dependence on who shares a batch."""

import numpy as np
import pytest
import torch

from harness.backbones.language_model.policy import load_policy
from harness.backbones.language_model.sampling import Drawing, sample
from harness.core.config import ModelConfig, SampleConfig

STOP, PAD = [2], 2
IDS = [f"question-{i}" for i in range(7)]


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_policy(tiny_model, ModelConfig()).model


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(3, 500, n).tolist()) for n in (3, 12, 5, 20, 8, 2, 9)]


def draw(model, prompts, ids=IDS, *, seed=0, stop=STOP, **decoding):
    settings = SampleConfig(**{"max_new_tokens": 12, "batch_size": 3, **decoding})
    return sample(model, prompts, ids, Drawing(settings, seed, stop, PAD))


def test_a_sample_does_not_depend_on_its_batch_or_on_the_order(model, prompts):
    whole = draw(model, prompts, batch_size=7)
    assert draw(model, prompts, batch_size=1) == whole
    assert draw(model, prompts[::-1], IDS[::-1], batch_size=2) == whole[::-1]


def test_the_same_seed_gives_the_same_samples_and_another_others(model, prompts):
    assert draw(model, prompts) == draw(model, prompts)
    assert draw(model, prompts) != draw(model, prompts, seed=1)


def test_temperature_zero_is_greedy(model, prompts):
    """Each token is the argmax of the model's own logits given what came before, computed without cache or padding."""
    for prompt, drawn in zip(prompts, draw(model, prompts, temperature=0.0), strict=True):
        ids = list(prompt)
        for token in drawn.ids:
            with torch.no_grad():
                assert token == model(torch.tensor([ids])).logits[0, -1].argmax().item()
            ids.append(token)


def test_samples_stop_at_the_stop_token_or_at_the_limit(model, prompts):
    likely = draw(model, prompts, temperature=0.0)[0].ids[1]
    for drawn in draw(model, prompts, temperature=0.0, stop=[likely]):
        assert drawn.finished == (drawn.ids[-1] == likely)
        assert likely not in drawn.ids[:-1]
        assert drawn.finished or len(drawn.ids) == 12
    assert draw(model, prompts, temperature=0.0, stop=[likely])[0].finished


def test_rows_that_have_ended_leave_the_batch(model, prompts):
    """A batch of seven goes on with those that have not ended: rows computed are near the tokens drawn."""
    computed = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: computed.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    stop = list(range(3, 500, 4))  # every fourth token, so that rows end early and apart
    drawn = draw(model, prompts, max_new_tokens=40, batch_size=7, stop=stop)
    hook.remove()
    lengths = sorted(len(s.ids) for s in drawn)
    assert lengths[0] < lengths[-1] and all(s.finished for s in drawn)
    assert len(computed) == lengths[-1], "one forward pass for each token of the longest"
    assert sum(computed) < 0.75 * 7 * lengths[-1]
    assert sum(computed) * 0.75 <= sum(lengths) <= sum(computed)
    assert drawn == draw(model, prompts, max_new_tokens=40, batch_size=1, stop=stop)


def test_greedy_and_sampled_tokens_are_those_of_the_library(model, prompts):
    """`generate`, in left-padded batches that nothing leaves, with the same uniform numbers."""
    from transformers import GenerationConfig, LogitsProcessorList

    from harness.backbones.language_model.sampling import _Draw

    for temperature, top_p in ((0.0, 1.0), (0.7, 0.9)):
        decoding = SampleConfig(temperature=temperature, top_p=top_p)
        draw_token = _Draw(decoding, IDS, 0)

        def one_left(input_ids, scores, draw_token=draw_token):
            chosen = draw_token(scores, range(len(IDS)))
            return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)

        width = max(map(len, prompts))
        ids = torch.tensor([[PAD] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        settings = GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=PAD)
        expected = model.generate(
            ids, attention_mask=mask, generation_config=settings, logits_processor=LogitsProcessorList([one_left])
        )[:, width:]
        ours = draw(model, prompts, temperature=temperature, top_p=top_p, stop=[], batch_size=7)
        assert [list(s.ids) for s in ours] == expected.tolist()


def test_tokens_are_drawn_with_the_model_s_probabilities(model, prompts):
    """4,000 first tokens for one prompt: every frequency within 5 standard errors of softmax(logits)."""
    n = 4000
    with torch.no_grad():
        expected = model(torch.tensor([prompts[0]])).logits[0, -1].double().softmax(0).numpy()
    drawn = draw(
        model, [prompts[0]] * n, [str(i) for i in range(n)], max_new_tokens=1, top_p=1.0, batch_size=1000, stop=[]
    )
    frequency = np.bincount([s.ids[0] for s in drawn], minlength=len(expected)) / n
    error = np.sqrt(expected * (1 - expected) / n) + 1 / n
    assert (np.abs(frequency - expected) < 5 * error).all()


def test_top_p_keeps_to_the_nucleus(model, prompts):
    with torch.no_grad():
        probabilities = model(torch.tensor([prompts[0]])).logits[0, -1].softmax(0)
    order = probabilities.argsort(descending=True)
    size = int((probabilities[order].cumsum(0) < 0.3).sum()) + 1
    drawn = draw(
        model, [prompts[0]] * 300, [str(i) for i in range(300)], max_new_tokens=1, top_p=0.3, batch_size=300, stop=[]
    )
    assert {s.ids[0] for s in drawn} <= set(order[:size].tolist())


def test_progress_reaches_the_end(model, prompts):
    seen = []
    drawing = Drawing(SampleConfig(max_new_tokens=2, batch_size=3), 0, STOP, PAD)
    sample(model, prompts, IDS, drawing, lambda done, total: seen.append((done, total)))
    assert seen == [(3, 7), (6, 7), (7, 7)]


def test_the_model_s_own_generation_settings_do_not_leak_in(model, prompts):
    from transformers import GenerationConfig

    plain = draw(model, prompts)
    model.generation_config = GenerationConfig(repetition_penalty=5.0, suppress_tokens=list(range(3, 300)))
    assert draw(model, prompts) == plain


@pytest.mark.parametrize("tune", ["full", "lora", "last_layers"])
def test_a_bf16_policy_can_be_sampled_whatever_is_trained(tiny_model, prompts, tune):
    policy = load_policy(tiny_model, ModelConfig(tune=tune, last_layers=1, dtype="bfloat16"))
    with policy.autocast():
        assert all(s.ids for s in draw(policy.model, prompts))
