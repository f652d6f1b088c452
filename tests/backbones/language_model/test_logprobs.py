"""The log-prob kernel equals the naive computation, in value, gradient, at chunk borders and in bf16."""

import pytest
import torch

from harness.backbones.language_model import logprobs
from harness.backbones.language_model.logprobs import token_collisions, token_logprobs

N, D, V = 13, 8, 50


def inputs(dtype=torch.float64, bias=False):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    offset = torch.randn(V, generator=g, dtype=torch.float64).to(dtype).requires_grad_() if bias else None
    return hidden, weight, torch.randint(V, (N,), generator=g), offset


def naive(hidden, weight, targets, bias):
    logits = hidden @ weight.T + (0 if bias is None else bias)
    return logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows_in_a_chunk", [1, 4, 13, 100])
def test_value_and_gradients_equal_the_naive_path(monkeypatch, bias, rows_in_a_chunk):
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", rows_in_a_chunk * V)
    weights = torch.linspace(-1, 1, N, dtype=torch.float64)
    results = []
    for kernel in (token_logprobs, naive):
        hidden, weight, targets, offset = inputs(bias=bias)
        value = kernel(hidden, weight, targets, offset)
        (value * weights).sum().backward()
        results.append([value, hidden.grad, weight.grad] + ([offset.grad] if bias else []))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_agree_with_finite_differences():
    hidden, weight, targets, bias = inputs(bias=True)
    assert torch.autograd.gradcheck(lambda h, w, b: token_logprobs(h, w, targets, b), (hidden, weight, bias))


def test_log_probs_are_fp32_for_a_bf16_model():
    hidden, weight, targets, _ = inputs(torch.bfloat16)
    value = token_logprobs(hidden, weight, targets)
    value.sum().backward()
    assert value.dtype == torch.float32
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    expected = naive(hidden.float(), weight.float(), targets, None)
    torch.testing.assert_close(value, expected, atol=0.05, rtol=0.02)


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, targets, _ = inputs()
    weight.requires_grad_(False)
    token_logprobs(hidden, weight, targets).sum().backward()
    assert weight.grad is None and hidden.grad is not None


def test_no_target_is_no_problem():
    hidden, weight, _, _ = inputs()
    assert token_logprobs(hidden[:0], weight, torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_extreme_logits_stay_finite():
    hidden, weight, targets, _ = inputs(torch.float32)
    value = token_logprobs(hidden * 1e4, weight, targets)
    value.sum().backward()
    assert value.isfinite().all() and hidden.grad.isfinite().all()


@pytest.mark.parametrize("rows_in_a_chunk", [1, 4, 13])
def test_collisions_are_the_log_of_the_sum_of_squared_probabilities(monkeypatch, rows_in_a_chunk):
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", rows_in_a_chunk * V)
    hidden, weight, _, bias = inputs(bias=True)
    collisions = token_collisions(hidden, weight, bias)
    torch.testing.assert_close(collisions, ((hidden @ weight.T + bias).softmax(-1) ** 2).sum(-1).log().detach())
    assert not collisions.requires_grad


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained", [(True, False), (False, True), (True, True)], ids=["head", "hidden", "both"])
def test_gradients_flow_to_what_asks_for_one(monkeypatch, bias, trained):
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", 4 * V)
    results = []
    for kernel in (token_logprobs, naive):
        hidden, weight, targets, offset = inputs(bias=bias)
        weight.requires_grad_(trained[0])
        hidden.requires_grad_(trained[1])
        if bias:
            offset.requires_grad_(trained[0])
        (kernel(hidden, weight, targets, offset) ** 2).sum().backward()
        results.append([t.grad for t in (hidden, weight, offset) if t is not None and t.requires_grad])
    assert results[0]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_hidden_state_that_predicts_two_targets_gets_the_gradient_of_both():
    """The last position of a shared prompt predicts the first token of each completion."""
    hidden, weight, targets, _ = inputs()
    doubled = torch.tensor([0, 0, 1])
    results = []
    for kernel in (token_logprobs, naive):
        hidden.grad = weight.grad = None
        kernel(hidden[doubled], weight, targets[:3], None).sum().backward()
        results.append((hidden.grad, weight.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_backward_pass_can_be_made_twice():
    hidden, weight, targets, _ = inputs()
    total = token_logprobs(hidden, weight, targets).sum()
    first, second = (torch.autograd.grad(total, (hidden, weight), retain_graph=True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="multiplies bf16 matrices as a GPU does")
@pytest.mark.parametrize("autocast", [False, True], ids=["bf16 weights", "fp32 weights under autocast"])
@pytest.mark.parametrize("trained", [False, True])
def test_on_a_gpu_a_bf16_model_adds_up_in_fp32(monkeypatch, autocast, trained):
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", 4 * V)
    results = []
    for kernel, dtype in ((token_logprobs, torch.float32 if autocast else torch.bfloat16), (naive, torch.float64)):
        hidden, weight, targets, _ = (t if t is None else t.detach().cuda() for t in inputs(torch.bfloat16))
        hidden, weight = hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(trained)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast and dtype == torch.float32):
            value = kernel(hidden, weight, targets, None)
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        value.sum().backward()
        results.append([value, hidden.grad, weight.grad] if trained else [value, hidden.grad])
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, atol=0.02, rtol=0.02)
    torch.testing.assert_close(results[0][0].double(), results[1][0], atol=1e-4, rtol=1e-4)
