"""The log-prob kernel: log-probs of given target tokens without a full logits tensor.

Only positions that predict a completion token reach the LM head, a chunk at a time; the backward pass recomputes the
chunk's logits instead of keeping them. Log-softmax is in fp32 whatever the model's dtype.
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


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = hidden @ weight.to(hidden.dtype).T
    if logits.dtype != torch.float64:
        logits = logits.float()
    return logits if bias is None else logits + bias.to(logits.dtype)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, bias):
        ctx.save_for_backward(hidden, weight, targets, bias)
        chunk = max(1, CHUNK_LOGITS // weight.shape[0])
        parts = []
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            logits = _logits(h, weight, bias)
            parts.append(logits.gather(1, t[:, None]).squeeze(1) - logits.logsumexp(dim=1))
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        hidden, weight, targets, bias = ctx.saved_tensors
        wants_hidden, wants_weight, _, wants_bias = ctx.needs_input_grad
        chunk = max(1, CHUNK_LOGITS // weight.shape[0])
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=grad.dtype) if wants_weight else None
        d_bias = torch.zeros_like(bias, dtype=grad.dtype) if wants_bias else None
        for start in range(0, len(targets), chunk):
            span = slice(start, start + chunk)
            h, t, g = hidden[span], targets[span], grad[span]
            # d log p(t) / d logits = onehot(t) - softmax
            d_logits = _logits(h, weight, bias).softmax(dim=1).mul_(-g[:, None])
            d_logits[torch.arange(len(t), device=t.device), t] += g
            if wants_hidden:
                d_hidden[span] = d_logits.to(h.dtype) @ weight.to(h.dtype)
            if wants_weight:
                d_weight += d_logits.T @ h.to(d_logits.dtype)
            if wants_bias:
                d_bias += d_logits.sum(dim=0)
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None,
            None if d_bias is None else d_bias.to(bias.dtype),
        )
