"""Random batches for testing losses, holding only what a loss declares, and the gradients of a loss on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch import Tensor

from losses.batch import History, Lists, Part, PreferenceBatch, Side
from losses.needs import NEEDS
from losses.spec import Loss

CHOSEN = 6  # chosen examples, and pairs
REJECTED = 4  # rejected examples of unpaired data
OTHERS = 2  # further responses to a prompt, at most
SHORT = 7  # tokens of a response, at most, for losses that read each token


def probe(loss: Loss, *, seed: int = 0, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> PreferenceBatch:
    """Return a random batch with only what the loss declares, and with token counts.

    Log-ratios are normally distributed with standard deviation `scale`, in nats. The chosen response has the highest
    score, the rejected one the lowest. A listwise loss gets lists of two to four responses.
    """
    g = torch.Generator().manual_seed(seed)
    sizes = (CHOSEN, REJECTED if loss.data == "unpaired" else CHOSEN)
    known = loss.needs | {"scores"} if loss.data == "listwise" else loss.needs
    with_values = "token_values" in loss.needs
    lengths = (2, SHORT + 1) if with_values else (4, 40)  # finite differences perturb each token
    needs = [
        (need, need.random) for need in map(NEEDS.get, NEEDS) if need.name in loss.needs and need.random is not None
    ]

    def random_responses(shape: Sequence[int], lowest: float, spread: float) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = torch.randint(*lengths, shape, generator=g)
        policy = -tokens * (0.2 + 2 * torch.rand(shape, generator=g, dtype=torch.float64))
        reference = policy - scale * torch.randn(shape, generator=g, dtype=torch.float64)
        scores = lowest + spread * torch.rand(shape, generator=g, dtype=torch.float64)
        values = {"policy": policy, "reference": reference, "scores": scores}
        return tokens, {k: v.to(dtype) for k, v in values.items() if k == "policy" or k in known}

    sides: list[Side] = []
    for name, n, lowest in zip(("chosen", "rejected"), sizes, (4.0, 0.0), strict=True):
        tokens, made = random_responses((n,), lowest, 1.0)
        further = {"scores": made["scores"]} if "scores" in made else {}
        side = Side(made["policy"], made.get("reference"), tokens, further, name=name)
        for need, random in needs:
            if need.of == "prompt" and sides and loss.data != "unpaired":  # both responses of a pair answer one prompt
                further[need.name] = sides[0].require(need.name)
            elif need.of != "batch":
                further[need.name] = random(side, g).to(dtype)
        sides.append(with_random_tokens(side, scale, g) if with_values else side)
    chosen, rejected = sides
    batch = PreferenceBatch(chosen, rejected)
    if loss.data == "listwise":
        _, made = random_responses((CHOSEN, OTHERS), 1.0, 3.0)
        mask = torch.arange(OTHERS) < torch.arange(CHOSEN)[:, None] % (OTHERS + 1)
        made = {k: v.masked_fill(~mask, 0.0) for k, v in made.items()}
        batch = replace(batch, others=Lists(made["policy"], made.get("reference"), made["scores"], mask))
    batch = replace(batch, needs={need.name: random(batch, g) for need, random in needs if need.of == "batch"})
    return batch.with_stopped() if "stopped" in loss.needs else batch


def with_random_tokens(side: Side, scale: float, generator: torch.Generator) -> Side:
    """Return the side with random per-token log-probs, values and log-ratios of standard deviation `scale`, in nats."""
    shape, dtype = (len(side), SHORT), side.policy.dtype
    policy = -0.2 - 2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    ratios, values = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    reference = None if side.reference is None else (policy - scale * ratios).to(dtype)
    mask = torch.arange(SHORT) < side.require("tokens")[:, None]
    return side.with_tokens(policy.to(dtype), values.to(dtype), mask, reference)


def by_token(part: Part) -> TypeGuard[Side]:
    """Whether the part holds log-probs and values of each token."""
    return isinstance(part, Side) and part.token_values is not None


def log_probs(part: Part) -> tuple[Tensor, Tensor | None]:
    """Return the log-probs under policy and reference: per token if the part has values, else summed."""
    if by_token(part):
        return part.require("token_policy"), part.token_reference
    return part.policy, part.reference


def with_log_probs(part: Part, policy: Tensor, reference: Tensor | None) -> Part:
    """Return the part with its log-probs replaced, in the form that `log_probs` returns."""
    if by_token(part):
        return part.with_tokens(policy, part.require("token_values"), part.require("token_mask"), reference)
    return replace(part, policy=policy, reference=reference)


def at_start(batch: PreferenceBatch) -> PreferenceBatch:
    """Return the batch as at step 0: the policy equals its reference, if there is one, and the history is empty."""

    def started(part: Part) -> Part:
        reference = log_probs(part)[1]
        return part if reference is None else with_log_probs(part, reference, reference)

    batch = batch.changed(lambda parts: map(started, parts))
    of_batch: dict[str, Any] = {
        need: History() if isinstance(value, History) else started(value) for need, value in batch.needs.items()
    }
    return replace(batch, needs=of_batch)


def rows_and_gradients(loss: Loss, batch: PreferenceBatch, settings: Mapping[str, object]) -> tuple[Tensor, ...]:
    """Return the rows, and d sum(rows) / d outputs for chosen, rejected and, if there are any, the others."""
    outputs = [part.outputs.detach().clone().requires_grad_() for part in batch.parts]
    rows = loss(batch.with_policy(*outputs), **settings)
    gradients = torch.autograd.grad(rows.sum(), outputs, allow_unused=True)
    return rows.detach(), *(torch.zeros_like(o) if g is None else g for o, g in zip(outputs, gradients, strict=True))


def rows_of(part: Part, order: Tensor | Sequence[int]) -> Part:
    """Return the rows of a part selected by the indices `order`, in that order."""
    order = torch.as_tensor(order, dtype=torch.long)
    rows: dict[str, Any] = {name: value[order] for name, value in vars(part).items() if isinstance(value, Tensor)}
    if isinstance(part, Side):
        rows["needs"] = {name: value[order] for name, value in part.needs.items()}
    return replace(part, **rows)


def one_by_one(loss: Loss, batch: PreferenceBatch) -> list[PreferenceBatch]:
    """Return one batch per pair, or per unpaired response."""
    wins, rest = range(len(batch.chosen)), range(len(batch.rejected))
    orders: list[tuple[list[int], ...]]
    if loss.data != "unpaired":
        orders = [([i], [i], [i]) for i in wins]
    else:
        orders = [([i], []) for i in wins] + [([], [i]) for i in rest]

    def cut(rows: tuple[list[int], ...]) -> PreferenceBatch:
        return batch.changed(lambda parts: map(rows_of, parts, rows))

    return [cut(rows) for rows in orders]
