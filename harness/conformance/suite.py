"""The conformance suite for every registered loss, run by `python -m harness check` and by the tests.

A check is a function of a `Loss`. It returns a few words for the table, or raises `CheckFailed` saying what is wrong
and what to do. Any other exception that a loss raises is also a failure.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.conformance.micro_batches import trained_gradients
from harness.conformance.outcomes import DECLARED, FAILED, NOT_TESTED, OK, Outcome
from harness.core.errors import last_line
from losses import History, Loss, MissingData, PreferenceBatch, Side
from losses.batch import Part
from losses.modifiers import fitting
from losses.numerics import rounding as rounding_of
from losses.probe import at_start, by_token, log_probs, one_by_one, probe, rows_and_gradients, rows_of, with_log_probs
from losses.spec import REDUCTIONS

EXTREME = 1e4  # nats: a log-ratio that diverging training can reach
SCALES = (0.1, 1.0, 10.0, 100.0, 1000.0)  # nats: standard deviations of log-ratios at which signs are checked
WIDEST = 10**6  # tokens in one forward pass: enough for the whole batch


class CheckFailed(Exception):
    """A loss does not do what it declares. The message says what is wrong and what to do."""


class Declared(Exception):
    """A loss breaks a rule as it declares; the message is its declaration."""


Check = Callable[[Loss], str]
CHECKS: dict[str, Check] = {}


def _check(name: str) -> Callable[[Check], Check]:
    def decorate(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return decorate


def run_check(name: str, loss: Loss) -> Outcome:
    """Run one check on one loss."""
    try:
        return Outcome(name, OK, CHECKS[name](loss))
    except CheckFailed as failure:
        return Outcome(name, FAILED, str(failure))
    except Declared as declared:
        return Outcome(name, DECLARED, str(declared))
    except MissingData as error:
        return Outcome(name, FAILED, f"{error}: declare it in needs")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's loss can raise anything, and its own message is the most helpful
        return Outcome(name, FAILED, _told(error, loss))


def _told(error: BaseException, loss: Loss) -> str:
    """Return what was raised, the name that was perhaps meant, and the last line of the loss's file that it passed."""
    message = str(error).splitlines()[0] if str(error) else ""
    meant = []
    if isinstance(error, AttributeError) and error.name:
        meant = difflib.get_close_matches(error.name, dir(error.obj), n=1)
    suggestion = f"; did you mean {meant[0]!r}?" if meant else ""
    line = Path(last_line(error, {function.__module__ for function in loss.functions})).name
    return f"{type(error).__name__}: {message}{suggestion}{f' ({line})' if line else ''}"


def check_loss(loss: Loss) -> list[Outcome]:
    """Run the whole suite on one loss. Without valid rows no other check means anything, and none is run."""
    first, *others = CHECKS
    outcome = run_check(first, loss)
    if outcome.status == FAILED:
        return [outcome, *(Outcome(name, NOT_TESTED, f"since {first} failed") for name in others)]
    return [outcome, *(run_check(name, loss) for name in others)]


@_check("rows")
def rows(loss: Loss) -> str:
    """It returns one finite value per pair, list or unpaired response (or, if coupled, per row of its contrast).

    A listwise loss that does not need scores accepts plain pairs too.
    """
    batch = probe(loss)
    values = loss(batch, **loss.settings())
    if not values.isfinite().all():
        raise CheckFailed(f"returns {values.tolist()} for ordinary log-probs")
    if loss.data == "listwise" and "scores" not in loss.needs:
        pairs = replace(batch.changed(lambda parts: map(_without_scores, parts[:2])), others=None)
        if not loss(pairs, **loss.settings()).isfinite().all():
            raise CheckFailed("is not finite for plain pairs, whose scores are the ranks 1 and 0")
    return f"{len(values)} for {len(batch.chosen)} chosen and {len(batch.rejected)} rejected"


@_check("hyper-parameters")
def hyperparameters(loss: Loss) -> str:
    """It is documented; each hyper-parameter has a grid that tries its default, and changes the value."""
    if not loss.summary:
        raise CheckFailed("the function has no docstring: say in a line what the loss does")
    batch, defaults = probe(loss), loss.settings()
    for name, p in loss.hyperparameters.items():
        if not p.grid:
            raise CheckFailed(f"{name} has no grid; declare the values to try: grid={{{name!r}: [...]}}")
        if p.default not in p.grid:
            raise CheckFailed(f"the grid of {name}, {list(p.grid)}, lacks its default {p.default}")
        others = [value for value in p.grid if value != p.default]
        if not others and p.type is float:
            others = [value for value in (1.1 * p.default, 0.9 * p.default) if value in p.bounds]
        rows = [loss(batch, **{**defaults, name: value}) for value in (p.default, *others)]
        if others and all(torch.equal(rows[0], other) for other in rows[1:]):
            raise CheckFailed(f"{name} changes nothing: leave it out")
    points = len(loss.grid())
    return f"{points} point{'s' * (points != 1)} in the grid"


def _without_scores(side: Side) -> Side:
    return replace(side, needs={need: values for need, values in side.needs.items() if need != "scores"})


@_check("start value")
def start_value(loss: Loss) -> str:
    """If the policy equals its reference, every row is the declared start value, at each point of the grid."""
    batch, declared = at_start(probe(loss)), 0
    for point in loss.grid():
        expected = loss.start(point)
        if expected is None:
            continue
        declared += 1
        values = loss(batch, **point)
        if not torch.allclose(values, torch.full_like(values, expected), rtol=1e-6, atol=1e-9):
            raise CheckFailed(
                f"at {point} the start value is declared as {expected:.6g}, and rows are {values.tolist()}"
            )
    return (
        f"holds at {declared} points of the grid" if declared else "none declared: training cannot check it at step 0"
    )


@_check("gradient")
def gradient(loss: Loss) -> str:
    """Its gradient agrees with finite differences in fp64."""
    for seed in range(3):
        batch = probe(loss, seed=seed)
        inputs = [part.outputs.clone().requires_grad_() for part in batch.parts]

        def rows_of_loss(*outputs: Tensor, batch: PreferenceBatch = batch) -> Tensor:
            return loss(batch.with_policy(*outputs), **loss.settings())

        if not rows_of_loss(*inputs).requires_grad:
            raise CheckFailed("the loss has no gradient in the policy's log-probs")
        if not torch.autograd.gradcheck(rows_of_loss, inputs, raise_exception=False):
            raise CheckFailed("differs from finite differences")
    return "agrees with finite differences in fp64"


@_check("extremes")
def extremes(loss: Loss) -> str:
    """In fp32, value and gradient are finite at log-ratios of +-1e4 nats and for a single token of probability 1.

    If a loss reads each token, every token has such a log-ratio.
    """
    cases = {f"log-ratios {a:+g} and {b:+g}": (a, b) for a, b in itertools.product((EXTREME, -EXTREME), repeat=2)}
    for point in loss.grid():
        for what, ratios in cases.items():
            _finite(loss, _at_log_ratios(loss, *ratios), point, what)
        for policy in (0.0, -1e-6, -EXTREME):
            _finite(loss, _of_one_token(loss, policy), point, f"one token at log-prob {policy:g}")
    return f"finite at log-ratios of +-{EXTREME:g} and at length 1"


def _at_log_ratios(loss: Loss, *ratios: float) -> PreferenceBatch:
    """Return a batch with these log-ratios. Log-probs stay below 0: for a positive one the reference is lowered."""

    def moved(part: Part, ratio: float) -> Part:
        high, reference = log_probs(part)
        policy, other = (high, high - EXTREME) if ratio > 0 else (high - EXTREME, high)
        return with_log_probs(part, policy, None if reference is None else other)

    batch = probe(loss, dtype=torch.float32)
    return batch.changed(lambda parts: [moved(*pair) for pair in zip(parts, (*ratios, -EXTREME), strict=False)])


def _of_one_token(loss: Loss, logp: float) -> PreferenceBatch:
    def certain(part: Part) -> Part:
        if by_token(part):
            first = torch.arange(part.token_mask.shape[1]) == 0
            part = replace(part, token_mask=first.expand_as(part.token_mask))
        elif isinstance(part, Side):
            part = replace(part, tokens=torch.ones_like(part.tokens))
        policy, reference = log_probs(part)
        return with_log_probs(part, torch.full_like(policy, logp), reference)

    return probe(loss, dtype=torch.float32).changed(lambda parts: map(certain, parts))


def _finite(loss: Loss, batch: PreferenceBatch, point: dict, what: str) -> None:
    results = rows_and_gradients(loss, batch, point)
    kinds = ("value", "gradient in chosen", "gradient in rejected", "gradient in the others")
    for kind, values in zip(kinds, results, strict=False):
        if not values.isfinite().all():
            raise CheckFailed(f"{kind} is not finite for {what} at {point}")


@_check("sign")
def sign(loss: Loss) -> str:
    """A gradient step never lowers a chosen response or raises a rejected one, unless declared."""
    wrong = _first_wrong_sign(loss)
    if wrong is None and loss.sign_exceptions and not loss.modified_by:  # a modifier can remove an exception
        raise CheckFailed(f"declares an exception that was not met: {loss.sign_exceptions}")
    if wrong is None:
        return "chosen never down, rejected never up"
    if not loss.sign_exceptions:
        raise CheckFailed(f"{wrong}; if that is meant, say when it does so in sign_exceptions")
    raise Declared(loss.sign_exceptions)


def _first_wrong_sign(loss: Loss) -> str | None:
    for scale, point, seed in itertools.product(SCALES, loss.grid(), range(2)):
        _, chosen, rejected, *_ = rows_and_gradients(loss, probe(loss, seed=seed, scale=scale), point)
        if "token_values" in loss.needs:
            chosen, rejected = chosen[:, 0], rejected[:, 0]  # the other half is the gradient in the values
        size = max(chosen.abs().max().item(), rejected.abs().max().item())
        for what, against in (("lowers a chosen", chosen), ("raises a rejected", -rejected)):
            if against.max().item() > 1e-9 * size:
                return f"{what} response at {point} and log-ratios of about {scale:g} nats"
    return None


@_check("order")
def order(loss: Loss) -> str:
    """The order of the examples, and of the responses in a list, changes neither the loss nor any gradient.

    For losses that read tokens, an additional column of padding changes nothing either.
    """
    for seed in range(3):
        batch, generator = probe(loss, seed=seed), torch.Generator().manual_seed(seed)
        first = torch.randperm(len(batch.chosen), generator=generator)
        second = torch.randperm(len(batch.rejected), generator=generator) if loss.data == "unpaired" else first
        orders = (first, second, first)
        shuffled = batch.changed(lambda parts, orders=orders: map(_turned, map(rows_of, parts, orders)))
        before, after = (rows_and_gradients(loss, b, loss.settings()) for b in (batch, shuffled))
        moved = [gradient[order] for gradient, order in zip(before[1:], orders, strict=False)]
        moved[2:] = [gradient.flip(1) for gradient in moved[2:]]
        if "token_values" in loss.needs:
            moved = [pad(gradient, (0, 1)) for gradient in moved]
        if not all(
            torch.allclose(*pair)
            for pair in zip((before[0].mean(), *moved), (after[0].mean(), *after[1:]), strict=True)
        ):
            raise CheckFailed("the value or a gradient changes when the examples change places or have more padding")
    return "value and gradients do not depend on it"


def _turned(part: Part) -> Part:
    """Return lists with their responses reversed, and sides with one more column of padding in per-token fields."""
    tensors = {name: value for name, value in vars(part).items() if isinstance(value, Tensor)}
    if isinstance(part, Side):
        return replace(part, **{k: pad(v, (0, 1)) for k, v in tensors.items() if k.startswith("token_")})
    return replace(part, **{k: v.flip(1) for k, v in tensors.items()})


@_check("coupling")
def coupling(loss: Loss) -> str:
    """`couples_examples` says whether a row depends on the other examples of the batch."""
    batch = probe(loss)
    whole = loss(batch, **loss.settings())
    try:
        alone = torch.cat([loss(part, **loss.settings()) for part in one_by_one(loss, batch)])
    except ValueError:
        if not loss.couples_examples:
            raise
        return "couples examples: it refuses a part of the batch"
    same = alone.shape == whole.shape and torch.allclose(alone, whole)
    if same and loss.couples_examples:
        raise CheckFailed("rows do not depend on each other: declare couples_examples=False and spare a forward pass")
    if not same and not loss.couples_examples:
        raise CheckFailed("a row changes when the other examples are taken away: declare couples_examples=True")
    return "couples examples" if loss.couples_examples else "each example by itself"


@_check("micro-batches")
def micro_batches(loss: Loss) -> str:
    """Training gives the same loss and gradient however the effective batch is split and padded.

    This holds at the start, where the policy is its reference, and later.
    """
    for start in (True, False):
        (value, whole), *cut = trained_gradients(loss, budgets=(WIDEST, 60, 1), at_start=start)
        for other, of_cut in cut:
            if abs(other - value) > 1e-5 * max(1.0, abs(value)) or (of_cut - whole).norm() > 1e-4 * whole.norm():
                raise CheckFailed(
                    f"the loss or its gradient depends on how the batch is cut: {value:.6g} whole, {other:.6g} cut"
                    + " (at policy = reference)" * start
                )
    return "the same, whole and cut, at the start and later"


@_check("rounding")
def rounding(loss: Loss) -> str:
    """At policy = reference, log-probs that are off by their fp32 rounding change neither the value nor the gradient.

    Where all log-ratios are 0 but for rounding, a rank, a comparison or a kink at 0 would be decided by noise.
    """
    batch, generator = at_start(probe(loss, dtype=torch.float32)), torch.Generator().manual_seed(0)
    for point, _ in itertools.product(loss.grid(), range(3)):
        noisy = batch.changed(lambda parts: [_rounded(part, generator) for part in parts])
        before, after = (rows_and_gradients(loss, b, point) for b in (batch, noisy))
        for exact, other in zip((before[0].mean(), *before[1:]), (after[0].mean(), *after[1:]), strict=True):
            if (other - exact).norm() > 1e-2 * exact.norm() + 1e-6:
                raise CheckFailed(
                    f"at policy = reference rounding changes the value or the gradient at {point}: treat log-ratios "
                    "within `rounding` (of a side or of lists) as equal"
                )
    return "changes nothing at policy = reference"


def _rounded(part: Part, generator: torch.Generator) -> Part:
    """Return the part with noise in the policy's log-probs, of a third of the rounding that is allowed for."""
    policy, reference = log_probs(part)
    size = rounding_of(policy, policy if reference is None else reference, policy.dtype)
    noise = (2 * torch.rand(policy.shape, generator=generator) - 1) * size / 3
    return with_log_probs(part, policy + noise, reference)


@_check("needs")
def needs(loss: Loss) -> str:
    """It runs with only what it declares, and every declared need affects its value."""
    batch = probe(loss)
    loss(batch, **loss.settings())  # raises `MissingData` for an undeclared need
    for need in sorted(loss.needs):
        changed = _changed(batch, need)
        if all(torch.equal(loss(batch, **point), loss(changed, **point)) for point in loss.grid()):
            raise CheckFailed(f"declares {need!r} and does not use it: leave it out of needs")
    return ", ".join(sorted(loss.needs)) or "nothing but log-probs and token counts"


def _changed(batch: PreferenceBatch, need: str) -> PreferenceBatch:
    """Return the batch with other values of a declared need."""
    if need == "stopped":
        return replace(batch, stopped=batch.with_policy(*(part.outputs + 1 for part in batch.parts)))
    if need in batch.needs:
        value = batch.needs[need]
        field = "mean" if isinstance(value, History) else "policy"
        moved_on = replace(value, **{field: getattr(value, field) + 1})
        return replace(batch, needs={**batch.needs, need: moved_on})
    generator = torch.Generator().manual_seed(1)

    def moved(values: Tensor) -> Tensor:
        return values + torch.rand(values.shape, generator=generator)

    def other(part: Part) -> Part:
        if isinstance(part, Side) and need in part.needs:
            return replace(part, needs={**part.needs, need: moved(part.needs[need])})
        # a reference may exist per token too
        old = {name: getattr(part, name, None) for name in (need, f"token_{need}")}
        return replace(part, **{name: moved(values) for name, values in old.items() if values is not None})

    return batch.changed(lambda parts: map(other, parts))


@_check("reduction")
def reduction(loss: Loss) -> str:
    """Doubling the tokens at the same log-prob per token changes a loss of sums, but not one of means.

    A loss of individual tokens changes if log-probs swap places within a response.
    """
    batch = probe(loss)
    value, longer, turned = (
        loss(view, **loss.settings())
        for view in (
            batch,
            *(batch.changed(lambda parts, to=to: map(to, parts)) for to in (_doubled, _log_probs_turned)),
        )
    )
    observed = "token" if not torch.allclose(value, turned) else "mean" if torch.allclose(value, longer) else "sum"
    if observed != loss.reduction:
        raise CheckFailed(f"reduction is declared as {loss.reduction!r}, and the loss takes the {REDUCTIONS[observed]}")
    return REDUCTIONS[observed]


def _doubled(part: Part) -> Part:
    if by_token(part):
        tokens = (part.token_policy, part.token_values, part.token_mask, part.token_reference)
        return part.with_tokens(*(None if t is None else t.repeat_interleave(2, dim=1) for t in tokens))
    fields = ("policy", "reference", "tokens") if isinstance(part, Side) else ("policy", "reference")
    return replace(part, **{f: 2 * getattr(part, f) for f in fields if getattr(part, f) is not None})


def _log_probs_turned(part: Part) -> Part:
    """Return the part with the policy's log-probs of the first two tokens swapped; unchanged if it has no tokens."""
    if not by_token(part):
        return part
    policy = torch.cat([part.token_policy[:, :2].flip(1), part.token_policy[:, 2:]], dim=1)
    return with_log_probs(part, policy, part.token_reference)


@_check("modifiers")
def modifiers(loss: Loss) -> str:
    """With every registered modifier that fits it, it passes all checks that it passes by itself.

    A modifier may leave one of its hyper-parameters without effect, as a bounded divergence does with a cap.
    """
    if loss.modified_by:
        return "it is a modified loss"
    fit = fitting(loss)
    for modified in fit:
        for outcome in check_loss(modified):
            if outcome.status != FAILED or outcome.check == "hyper-parameters":
                continue
            if run_check(outcome.check, loss).status != FAILED:
                raise CheckFailed(f"{modified.name} fails {outcome.check!r}: {outcome.detail}")
    return ", ".join(modified.name.partition("+")[2] for modified in fit) or "none fits"
