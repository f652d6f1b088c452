"""Made-up batches that losses are tried on: just what a loss declares, with the gradients of what it returns."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from harness.backbones.language_model.rows import TokenBatch, effective_batches
from harness.backbones.language_model.scoring import BatchSource, score
from harness.backbones.language_model.tokens import Example, Tokens
from harness.tasks.base import Message
from harness.training.objective import PreferenceObjective
from harness.training.supply import ScoredSequences, Split
from losses import History, Lists, Loss, PreferenceBatch, Side
from losses.batch import Part

CHOSEN, REJECTED, WIDTH = 6, 4, 8  # examples of each class (pairs: as many of both), and an embedding's dimensions
OTHERS = 2  # at most so many further responses to a prompt
SHORT = 7  # tokens at most, where a loss reads each
VOCABULARY, PAIRS = 16, 6


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


class Bigram(nn.Module):
    """The smallest causal language model: log-probs of a token given the one before it. Stands in for a `Policy`."""

    compute_dtype, device, trunk, together = torch.float32, torch.device("cpu"), None, False

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY))
        self.values = nn.Parameter(torch.randn(VOCABULARY))

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return `(targets,)` log-probs of the batch's completion tokens."""
        previous = batch.input_ids.flatten()[batch.position]
        return self.table.log_softmax(-1)[previous, batch.targets]

    def with_values(self, batch: TokenBatch) -> Tensor:
        """Return `(2, targets)` log-probs and values of the batch's completion tokens."""
        return torch.stack([self(batch), self.values[batch.input_ids.flatten()[batch.position]]])

    def confidences(self, batch: TokenBatch) -> Tensor:
        """Return `(targets,)` log p(y_t) - log sum_v p(v)^2."""
        previous = batch.input_ids.flatten()[batch.position]
        collisions = (2 * self.table.log_softmax(-1)).logsumexp(-1)[previous]
        return (self(batch) - collisions).detach()


def trained_gradients(loss: Loss, budgets: Sequence[int]) -> list[tuple[float, Tensor]]:
    """Return loss and gradient of one effective batch by the real training objective, cut to each token budget."""
    from accelerate import Accelerator

    rng = np.random.default_rng(0)
    sequences = [
        Tokens(*(tuple(rng.integers(1, VOCABULARY, rng.integers(2, 12)).tolist()) for _ in range(2)))
        for _ in range(2 * PAIRS + OTHERS)
    ]
    # the first lists hold further responses, the first with the fewest
    others = [tuple(range(2 * PAIRS, 2 * PAIRS + min(i + 1, OTHERS))) if i < PAIRS // 2 else () for i in range(PAIRS)]
    examples = [
        Example(
            (Message("user", str(i)),),
            2 * i,
            2 * i + 1,
            (3.0, 0.5 * rng.random(), *(1 + rng.random(len(others[i])))),
            others[i],
        )
        for i in range(PAIRS)
    ]
    embeddings = rng.normal(size=(PAIRS, WIDTH)).astype(np.float32)
    ratios = rng.uniform(0.5, 5.0, size=PAIRS).astype(np.float32)
    (batch,) = effective_batches(examples, batch_size=PAIRS, data=loss.data, seed=0, epoch=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = Bigram()
        first, other = copy.deepcopy(policy), Bigram()
        with torch.no_grad():
            policy.table += 0.1 * torch.randn_like(policy.table)
    found = []
    for budget in budgets:
        policy.zero_grad()

        def scored(sequences: list[Tokens], budget: int = budget) -> ScoredSequences:
            source = BatchSource(sequences, pad_token=0, budget=budget)
            return ScoredSequences(source, *score([first], source))

        given = scored(sequences)
        (second,) = score([other], given.batches)
        split = Split(
            examples, True, given.batches, given.reference, embeddings, ratios, second, scored, lambda prompt: (1, 2)
        )
        objective = PreferenceObjective(
            policy, loss, loss.settings(), split.supply(loss, [batch]), Accelerator(cpu=True)
        )
        value = objective.backward(batch)["loss"]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.parameters()]
        found.append((value, torch.cat([gradient.flatten() for gradient in gradients])))
    return found
