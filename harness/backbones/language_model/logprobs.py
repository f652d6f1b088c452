"""The log-prob kernel: log-probs of target tokens without a full logits tensor.

Only positions that predict a completion token reach the LM head, one chunk at a time. If the head is trained, the
backward pass recomputes the logits instead of keeping them. If it is frozen, the forward pass computes the gradient of
each token's log-prob with respect to its hidden state and keeps that instead. Logits and log-softmax are in fp32
whatever the model's dtype, forward and backward: rounded to bf16, a logit of 10 is off by 0.03 nats, and a completion
of 200 tokens by more than one. On a GPU, a bf16 model's matrix products have bf16 factors and accumulate in fp32, as in
its layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_LOGITS = 1 << 25  # logits in memory at a time: 128 MiB in fp32 for any vocabulary


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `(n,)` fp32 log-probs of `targets` `(n,)` under softmax(hidden @ weight.T + bias).

    `hidden` is `(n, d)` and `weight` `(vocabulary, d)`. Gradients flow to those of `hidden`, `weight` and
    `bias` that require one. Peak memory is two chunks of logits plus the gradient; one chunk without gradient.
    """
    return _TokenLogProbs.apply(hidden, weight, targets, bias)


@torch.no_grad()
def token_collisions(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `(n,)` fp32 log sum_v p(v)^2 of the softmax: the log-probability that two samples are equal."""
    head = _head(weight, bias, _factor_dtype(hidden))
    parts = []
    for h in hidden.split(_rows_in_a_chunk(weight)):
        logits = _logits(h, *head)
        parts.append((2 * logits).logsumexp(dim=1) - 2 * logits.logsumexp(dim=1))
    return torch.cat(parts)


class _TokenLogProbs(torch.autograd.Function):
    """With p = softmax(logits) and t the target: d log p_t / d hidden = weight_t - p @ weight."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> Tensor:
        factor = _factor_dtype(hidden)
        chunk = _rows_in_a_chunk(weight)
        wants_hidden, wants_weight, _, wants_bias = ctx.needs_input_grad
        head = _head(weight, bias, factor)
        head_is_trained = wants_weight or wants_bias
        parts, totals, slopes, first = [], [], [], None
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            logits = _logits(h, *head)
            at_target = logits.gather(1, t[:, None]).squeeze(1)
            sums, total = _exponentials(logits)
            totals.append(total)
            parts.append(at_target - total)
            if wants_hidden and not head_is_trained:
                slopes.append(_slope(logits.div_(sums), t, head[0]))
            elif head_is_trained and first is None:
                first = logits.div_(sums)  # one chunk is kept, as often there is only one
        ctx.save_for_backward(
            hidden, weight, targets, bias, torch.cat(totals), torch.cat(slopes) if slopes else None, first
        )
        ctx.chunk, ctx.factor = chunk, factor
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, bias, totals, slopes, first = ctx.saved_tensors
        if slopes is not None:
            return (grad[:, None] * slopes).to(hidden.dtype), None, None, None
        wants_hidden, wants_weight, _, wants_bias = ctx.needs_input_grad
        head = _head(weight, bias, ctx.factor)
        d_hidden = totals.new_empty(hidden.shape) if wants_hidden else None
        d_weight = totals.new_zeros(weight.shape) if wants_weight else None
        d_bias = totals.new_zeros(bias.shape) if wants_bias else None
        for start in range(0, len(targets), ctx.chunk):
            span = slice(start, start + ctx.chunk)
            h, t, g = hidden[span], targets[span], grad[span]
            p = first if start == 0 else _logits(h, *head).sub_(totals[span, None]).exp_()
            if wants_hidden:
                d_hidden[span] = g[:, None] * _slope(p, t, head[0])
            if wants_weight:
                weighted = g[:, None] * h
                _subtract_product(d_weight, p.T, weighted, ctx.factor)
                d_weight.index_add_(0, t, weighted)
            if wants_bias:
                d_bias.sub_(g @ p).index_add_(0, t, g)
        inputs = (hidden, weight, None, bias)
        return tuple(
            None if gradient is None else gradient.to(source.dtype)
            for gradient, source in zip((d_hidden, d_weight, None, d_bias), inputs, strict=True)
        )


def _factor_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype of matrix factors: bf16 for a bf16 model on a GPU, otherwise fp32, or fp64 for fp64 states."""
    if hidden.is_cuda:
        autocast = torch.is_autocast_enabled("cuda")
        if (torch.get_autocast_dtype("cuda") if autocast else hidden.dtype) == torch.bfloat16:
            return torch.bfloat16
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def _rows_in_a_chunk(weight: Tensor) -> int:
    return max(1, CHUNK_LOGITS // weight.shape[0])


def _head(weight: Tensor, bias: Tensor | None, factor: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return the LM head: its weight in the dtype `factor`, its bias in at least fp32."""
    return weight.to(factor), None if bias is None else bias.to(torch.promote_types(factor, torch.float32))


def _product(a: Tensor, b: Tensor, factor: torch.dtype) -> Tensor:
    """Return a @ b with both factors in the dtype `factor`, accumulated in at least fp32."""
    with torch.autocast(a.device.type, enabled=False):
        if factor == torch.bfloat16:
            return torch.mm(a.to(factor), b.to(factor), out_dtype=torch.float32)
        return a.to(factor) @ b.to(factor)


def _subtract_product(total: Tensor, a: Tensor, b: Tensor, factor: torch.dtype) -> None:
    """Subtract a @ b from `total` in place, without a temporary for the product unless `factor` is bf16."""
    if factor == torch.bfloat16:
        total -= _product(a, b, factor)
    else:
        total.addmm_(a.to(factor), b.to(factor), alpha=-1)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = _product(hidden, weight.T, weight.dtype)
    return logits if bias is None else logits.add_(bias)


def _exponentials(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Replace logits by exp(logit - largest), in place: a second such tensor would cost as much as their product.

    Return the sums, `(n, 1)`, that normalise them to probabilities, and the logsumexp of the logits, `(n,)`.
    """
    largest = logits.amax(dim=1, keepdim=True)
    sums = logits.sub_(largest).exp_().sum(dim=1, keepdim=True)
    return sums, (largest + sums.log()).squeeze(1)


def _slope(p: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Return `(n, d)` d log p(target) / d hidden."""
    return weight[targets].to(p.dtype) - _product(p, weight, weight.dtype)
