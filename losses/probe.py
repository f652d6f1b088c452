"""Random batches for testing losses, holding only what a loss declares, and the gradients of a loss on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

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
    lengths = (2, SHORT + 1) if with_values else (4, 40)  # each token is an input of its own to finite differences
    needs = [need for need in map(NEEDS.get, NEEDS) if need.name in loss.needs]

    def random_responses(shape: Sequence[int], lowest: float, spread: float) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = torch.randint(*lengths, shape, generator=g)
        policy = -tokens * (0.2 + 2 * torch.rand(shape, generator=g, dtype=torch.float64))
        reference = policy - scale * torch.randn(shape, generator=g, dtype=torch.float64)
        scores = lowest + spread * torch.rand(shape, generator=g, dtype=torch.float64)
        made = {"policy": policy, "reference": reference, "scores": scores}
        return tokens, {k: v.to(dtype) for k, v in made.items() if k == "policy" or k in known}

    sides: list[Side] = []
    for name, n, lowest in zip(("chosen", "rejected"), sizes, (4.0, 0.0), strict=True):
        tokens, made = random_responses((n,), lowest, 1.0)
        values = {"scores": made.pop("scores")} if "scores" in made else {}
        side = Side(made["policy"], made.get("reference"), tokens, values, name=name)
        for need in needs:
            if need.of == "prompt" and sides and loss.data != "unpaired":  # the two of a pair answer one prompt
                values[need.name] = sides[0].require(need.name)
            elif need.of != "batch" and need.random is not None:
                values[need.name] = need.random(side, g).to(dtype)
        sides.append(with_random_tokens(side, scale, g) if with_values else side)
    batch = PreferenceBatch(sides[0], sides[1])
    if loss.data == "listwise":
        _, made = random_responses((CHOSEN, OTHERS), 1.0, 3.0)
        mask = torch.arange(OTHERS) < torch.arange(CHOSEN)[:, None] % (OTHERS + 1)
        made = {k: v.masked_fill(~mask, 0.0) for k, v in made.items()}
        batch = replace(batch, others=Lists(made["policy"], made.get("reference"), made["scores"], mask))
    of_batch = {need.name: need.random(batch, g) for need in needs if need.of == "batch" and need.random is not None}
    batch = replace(batch, needs=of_batch)
    return batch.with_stopped() if "stopped" in loss.needs else batch


def with_random_tokens(side: Side, scale: float, generator: torch.Generator) -> Side:
    """Return the side with random per-token log-probs, values and log-ratios of standard deviation `scale`, in nats."""
    shape, dtype = (len(side), SHORT), side.policy.dtype
    policy = -0.2 - 2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    ratios, values = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    reference = None if side.reference is None else (policy - scale * ratios).to(dtype)
    mask = torch.arange(SHORT) < side.require("tokens")[:, None]
    return side.with_tokens(policy.to(dtype), values.to(dtype), mask, reference)


def by_token(part: Part) -> bool:
    """Whether a loss reads log-probs and values of each token of the part."""
    return isinstance(part, Side) and part.token_values is not None


def log_probs(part: Part) -> tuple[Tensor, Tensor | None]:
    """Return what a loss reads of policy and reference: log-probs of each token where there are values, else sums."""
    if isinstance(part, Side) and part.token_values is not None:
        return part.require("token_policy"), part.token_reference
    return part.policy, part.reference


def with_log_probs(part: Part, policy: Tensor, reference: Tensor | None) -> Part:
    """Return the part with other log-probs, in the form that `log_probs` gives."""
    if isinstance(part, Side) and part.token_values is not None:
        return part.with_tokens(policy, part.token_values, part.require("token_mask"), reference)
    return replace(part, policy=policy, reference=reference)


def at_start(batch: PreferenceBatch) -> PreferenceBatch:
    """Return the batch as at step 0: the policy equals its reference, if there is one, and the history is empty."""

    def started(part: Part) -> Part:
        reference = log_probs(part)[1]
        return part if reference is None else with_log_probs(part, reference, reference)

    batch = batch.changed(lambda parts: map(started, parts))
    needs = {need: History() if isinstance(v, History) else cast(Side, started(v)) for need, v in batch.needs.items()}
    return replace(batch, needs=needs)


def rows_and_gradients(loss: Loss, batch: PreferenceBatch, settings: Mapping) -> tuple[Tensor, ...]:
    """Return the rows, and d sum(rows) / d outputs of the chosen, of the rejected, and of others if there are any."""
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
    if loss.data != "unpaired":
        orders = [[[i], [i], [i]] for i in wins]
    else:
        orders = [*([[i], []] for i in wins), *([[], [i]] for i in rest)]

    def part_of(rows: list[list[int]]) -> PreferenceBatch:
        return batch.changed(lambda parts: map(rows_of, parts, rows))

    return [part_of(rows) for rows in orders]
