"""The log-prob kernel: log-probs of given target tokens without a full logits tensor.

Only positions that predict a completion token reach the LM head, a chunk at a time; the backward pass recomputes the
chunk's logits instead of keeping them. Logits and log-softmax are in fp32 whatever the model's dtype, forward and
backward alike: rounded to bf16, a logit of 10 is off by 0.03 nats, and a completion of 200 tokens by more than one.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_LOGITS = 1 << 25  # logits held at a time: 128 MiB in fp32, whatever the vocabulary


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `(n,)` fp32 log-probs of `targets` `(n,)` under softmax(hidden @ weight.T + bias).

    `hidden` is `(n, d)` and `weight` `(vocabulary, d)`. Gradients flow to `hidden`, `weight` and `bias` where they
    ask for one. Peak memory is one chunk of logits and its gradient.
    """
    return _TokenLogProbs.apply(hidden, weight, targets, bias)


def _precise(*tensors: Tensor | None) -> list[Tensor | None]:
    """Return the tensors in fp32, or in fp64 where the first one is."""
    dtype = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    return [None if t is None else t.to(dtype) for t in tensors]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        logits = hidden @ weight.T
        return logits if bias is None else logits + bias


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, bias):
        ctx.save_for_backward(hidden, weight, targets, bias)
        chunk = max(1, CHUNK_LOGITS // weight.shape[0])
        hidden, weight, bias = _precise(hidden, weight, bias)
        parts = []
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            logits = _logits(h, weight, bias)
            parts.append(logits.gather(1, t[:, None]).squeeze(1) - logits.logsumexp(dim=1))
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        given_hidden, given_weight, targets, given_bias = ctx.saved_tensors
        hidden, weight, bias = _precise(given_hidden, given_weight, given_bias)
        wants_hidden, wants_weight, _, wants_bias = ctx.needs_input_grad
        chunk = max(1, CHUNK_LOGITS // weight.shape[0])
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight) if wants_weight else None
        d_bias = torch.zeros_like(bias) if wants_bias else None
        for start in range(0, len(targets), chunk):
            span = slice(start, start + chunk)
            h, t, g = hidden[span], targets[span], grad[span]
            # d log p(t) / d logits = onehot(t) - softmax
            d_logits = _logits(h, weight, bias).softmax(dim=1).mul_(-g[:, None])
            d_logits[torch.arange(len(t), device=t.device), t] += g
            if wants_hidden:
                d_hidden[span] = d_logits @ weight
            if wants_weight:
                d_weight += d_logits.T @ h
            if wants_bias:
                d_bias += d_logits.sum(dim=0)
        given = (given_hidden, given_weight, None, given_bias)
        return tuple(
            None if gradient is None else gradient.to(source.dtype)
            for gradient, source in zip((d_hidden, d_weight, None, d_bias), given, strict=True)
        )
