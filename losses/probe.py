"""Made-up batches that losses are tried on: what a loss declares and no more, and the gradients of what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from losses import History, Lists, Loss, PreferenceBatch, Side
from losses.batch import Part

CHOSEN = 6  # chosen examples, and pairs
REJECTED = 4  # rejected examples of unpaired data
WIDTH = 8  # dimensions of an embedding
OTHERS = 2  # at most so many further responses to a prompt
SHORT = 7  # tokens at most, where a loss reads each


def probe(loss: Loss, *, seed: int = 0, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> PreferenceBatch:
    """Return a random batch with what the loss declares and no more; token counts are always there.

    Log-ratios are normal with standard deviation `scale`, in nats. The chosen response scores highest, the rejected
    one lowest. A listwise loss gets lists of two to four.
    """
    g = torch.Generator().manual_seed(seed)
    sizes = (CHOSEN, REJECTED if loss.data == "unpaired" else CHOSEN)
    embeddings = [torch.randn(n, WIDTH, generator=g, dtype=torch.float64).to(dtype) for n in sizes]
    if loss.data != "unpaired":
        embeddings[1] = embeddings[0]
    known = loss.needs | {"scores"} if loss.data == "listwise" else loss.needs
    with_values = "token_values" in loss.needs
    lengths = (2, SHORT + 1) if with_values else (4, 40)  # each token is an input of its own to finite differences

    def random_responses(shape: Sequence[int], lowest: float, spread: float) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = torch.randint(*lengths, shape, generator=g)
        policy = -tokens * (0.2 + 2 * torch.rand(shape, generator=g, dtype=torch.float64))
        reference = policy - scale * torch.randn(shape, generator=g, dtype=torch.float64)
        scores = lowest + spread * torch.rand(shape, generator=g, dtype=torch.float64)
        given = {"policy": policy, "reference": reference, "scores": scores}
        return tokens, {k: v.to(dtype) for k, v in given.items() if k == "policy" or k in known}

    sides = []
    for name, n, prompts, lowest in zip(("chosen", "rejected"), sizes, embeddings, (4.0, 0.0), strict=True):
        tokens, given = random_responses((n,), lowest, 1.0)
        if "prompt_embeddings" in loss.needs:
            given["prompt_embeddings"] = prompts
        if "second_reference" in loss.needs:
            given["second_reference"] = given["reference"] * (0.9 + 0.2 * torch.rand(n, generator=g)).to(dtype)
        if "augmented" in loss.needs:
            given["augmented"] = (-20 * torch.rand(n, generator=g, dtype=torch.float64)).to(dtype)
        if "confidence" in loss.needs:
            given["confidence"] = -torch.rand(n, generator=g, dtype=torch.float64).to(dtype)
        if "density_ratios" in loss.needs:
            given["density_ratios"] = torch.linspace(0.1, 20.0, n, dtype=dtype)
        side = Side(tokens=tokens, name=name, **given)
        sides.append(with_random_tokens(side, scale, g) if with_values else side)
    batch = PreferenceBatch(*sides)
    if loss.data == "listwise":
        _, given = random_responses((CHOSEN, OTHERS), 1.0, 3.0)
        mask = torch.arange(OTHERS) < torch.arange(CHOSEN)[:, None] % (OTHERS + 1)
        given = {"reference": None, **{k: v.masked_fill(~mask, 0.0) for k, v in given.items()}}
        batch = replace(batch, others=Lists(**given, mask=mask))
    if "kl_pairs" in loss.needs:  # a KL that is large enough to be seen
        _, given = random_responses((sum(sizes),), 0.0, 1.0)
        batch = replace(batch, kl_pairs=Side(given["reference"] + 2 + scale, given["reference"], name="mismatched"))
    if "history" in loss.needs:
        batch = replace(batch, history=History(scale, 10))
    return batch.with_stopped() if "stopped" in loss.needs else batch


def with_random_tokens(side: Side, scale: float, generator: torch.Generator) -> Side:
    """Return the side with log-probs, log-ratios of that scale, and values of each of its tokens."""
    shape, dtype = (len(side), SHORT), side.policy.dtype
    policy = -0.2 - 2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    ratios, values = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    reference = None if side.reference is None else (policy - scale * ratios).to(dtype)
    mask = torch.arange(SHORT) < side.tokens[:, None]
    return side.with_tokens(policy.to(dtype), values.to(dtype), mask, reference)


def by_token(part: Part) -> bool:
    """Whether a loss reads log-probs and values of each token of the part."""
    return isinstance(part, Side) and part.token_values is not None


def log_probs(part: Part) -> tuple[Tensor, Tensor | None]:
    """Return what a loss reads of policy and reference: log-probs of each token where there are values, else sums."""
    return (part.token_policy, part.token_reference) if by_token(part) else (part.policy, part.reference)


def with_log_probs(part: Part, policy: Tensor, reference: Tensor | None) -> Part:
    """Return the part with other log-probs, in the form that `log_probs` gives."""
    if by_token(part):
        return part.with_tokens(policy, part.token_values, part.token_mask, reference)
    return replace(part, policy=policy, reference=reference)


def at_start(batch: PreferenceBatch) -> PreferenceBatch:
    """Return the batch with the policy moved onto its reference, where there is one, and nothing before it."""

    def started(part: Part) -> Part:
        reference = log_probs(part)[1]
        return part if reference is None else with_log_probs(part, reference, reference)

    batch = batch.changed(lambda parts: map(started, parts))
    return replace(
        batch,
        kl_pairs=batch.kl_pairs and started(batch.kl_pairs),
        history=batch.history and History(),
    )


def rows_and_gradients(loss: Loss, batch: PreferenceBatch, settings: Mapping) -> tuple[Tensor, ...]:
    """Return the rows, and d sum(rows) / d outputs of the chosen, of the rejected, and of others if there are any."""
    outputs = [part.outputs.detach().clone().requires_grad_() for part in batch.parts]
    rows = loss(batch.with_policy(*outputs), **settings)
    gradients = torch.autograd.grad(rows.sum(), outputs, allow_unused=True)
    return rows.detach(), *(torch.zeros_like(o) if g is None else g for o, g in zip(outputs, gradients, strict=True))


def rows_of(part: Part, order: Tensor | Sequence[int]) -> Part:
    """Return some rows of a part of a batch, in another order."""
    order = torch.as_tensor(order, dtype=torch.long)
    return replace(part, **{name: value[order] for name, value in vars(part).items() if isinstance(value, Tensor)})


def one_by_one(loss: Loss, batch: PreferenceBatch) -> list[PreferenceBatch]:
    """Return each pair, or each unpaired response, as a batch of its own."""
    wins, rest = range(len(batch.chosen)), range(len(batch.rejected))
    if loss.data != "unpaired":
        orders = [([i], [i], [i]) for i in wins]
    else:
        orders = [([i], []) for i in wins] + [([], [i]) for i in rest]
    return [batch.changed(lambda parts, rows=rows: map(rows_of, parts, rows)) for rows in orders]
