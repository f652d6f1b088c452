"""The log-prob kernel equals the naive computation, in value, gradient, at chunk borders and in bf16."""

import pytest
import torch

from harness.training import logprobs
from harness.training.logprobs import token_logprobs

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
