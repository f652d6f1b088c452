"""The conformance suite that every registered loss is held to: `python -m harness check` and the tests run it.

A check is a function of a `Loss`. It returns a few words for the table, or raises `Failure` with what is wrong and
what to do. Whatever else a loss raises is a failure too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import torch

from harness.outcomes import DECLARED, FAILED, OK, SKIPPED, Outcome
from harness.probes import at_start, one_by_one, probe, rows_and_gradients, rows_of, trained_gradients
from losses import Loss, MissingData, PreferenceBatch

EXTREME = 1e4  # nats: a log-ratio that training can reach when it goes wrong
SCALES = (0.1, 1.0, 10.0, 100.0, 1000.0)  # nats: spreads of log-ratios on which signs are looked at
WIDEST = 10**6  # tokens in one forward pass: all of the batch


class Failure(Exception):
    """A loss does not keep what it declares. The message says what, and what to do."""


class NotRun(Exception):
    """A check cannot be made for this loss; the message says why."""


class Declared(Exception):
    """A loss departs from a rule in the way that it declares; the message is its declaration."""


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
    except Failure as failure:
        return Outcome(name, FAILED, str(failure))
    except Declared as declared:
        return Outcome(name, DECLARED, str(declared))
    except NotRun as reason:
        return Outcome(name, SKIPPED, str(reason))
    except MissingData as error:
        return Outcome(name, FAILED, f"{error}: declare it in needs")
    except Exception as error:  # a user's loss can raise anything, and its own words help most
        return Outcome(name, FAILED, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def check_loss(loss: Loss) -> list[Outcome]:
    """Run the whole suite on one loss."""
    return [run_check(name, loss) for name in CHECKS]


@_check("hyper-parameters")
def hyperparameters(loss: Loss) -> str:
    """It is documented; each hyper-parameter has a grid that tries its default, and changes the value."""
    if not loss.summary:
        raise Failure("the function has no docstring: say in a line what the loss does")
    batch, defaults = probe(loss), loss.settings()
    for name, p in loss.hyperparameters.items():
        if not p.grid:
            raise Failure(f"{name} has no grid; declare the values to try: grid={{{name!r}: [...]}}")
        if p.default not in p.grid:
            raise Failure(f"the grid of {name}, {list(p.grid)}, lacks its default {p.default}")
        others = [value for value in p.grid if value != p.default] or [1.1 * p.default] * (p.type is float)
        rows = [loss(batch, **{**defaults, name: value}) for value in (p.default, *others)]
        if others and all(torch.equal(rows[0], other) for other in rows[1:]):
            raise Failure(f"{name} changes nothing: leave it out")
    points = len(loss.grid())
    return f"{points} point{'s' * (points != 1)} in the grid"


@_check("rows")
def rows(loss: Loss) -> str:
    """It returns one finite value for each pair or unpaired response (or, coupled, for each row of its contrast)."""
    batch = probe(loss)
    found = loss(batch, **loss.settings())
    if not found.isfinite().all():
        raise Failure(f"returns {found.tolist()} for ordinary log-probs")
    return f"{len(found)} for {len(batch.chosen)} chosen and {len(batch.rejected)} rejected"


@_check("start value")
def start_value(loss: Loss) -> str:
    """Where the policy is its reference, every row is the declared start value, at each point of the grid."""
    batch, declared = at_start(probe(loss)), 0
    for point in loss.grid():
        expected = loss.start(point)
        if expected is None:
            continue
        declared += 1
        found = loss(batch, **point)
        if not torch.allclose(found, torch.full_like(found, expected), rtol=1e-6, atol=1e-9):
            raise Failure(f"at {point} the start value is declared as {expected:.6g}, and rows are {found.tolist()}")
    return (
        f"holds at {declared} points of the grid" if declared else "none declared: training cannot check it at step 0"
    )


@_check("gradient")
def gradient(loss: Loss) -> str:
    """In fp64 its gradient agrees with finite differences."""
    for seed in range(3):
        batch = probe(loss, seed=seed)
        inputs = [side.policy.clone().requires_grad_() for side in (batch.chosen, batch.rejected)]

        def total(*policies, batch=batch):
            return loss(batch.with_policy(*policies), **loss.settings()).sum()

        if not total(*inputs).requires_grad:
            raise Failure("the loss has no gradient in the policy's log-probs")
        if not torch.autograd.gradcheck(total, inputs, raise_exception=False):
            raise Failure("differs from finite differences")
    return "agrees with finite differences in fp64"


@_check("extremes")
def extremes(loss: Loss) -> str:
    """In fp32 value and gradient are finite at log-ratios of +-1e4 nats, and for one token that is certain."""
    cases = {f"log-ratios {a:+g} and {b:+g}": (a, b) for a, b in itertools.product((EXTREME, -EXTREME), repeat=2)}
    for point in loss.grid():
        for what, ratios in cases.items():
            _finite(loss, _at_log_ratios(loss, *ratios), point, what)
        for policy in (0.0, -1e-6, -EXTREME):
            _finite(loss, _of_one_token(loss, policy), point, f"one token at log-prob {policy:g}")
    return f"finite at log-ratios of +-{EXTREME:g} and at length 1"


def _at_log_ratios(loss: Loss, *ratios: float) -> PreferenceBatch:
    """Log-probs stay below 0: a rise is one from a reference far below, or, without reference, from nowhere."""
    batch = probe(loss, dtype=torch.float32)
    sides = []
    for side, ratio in zip((batch.chosen, batch.rejected), ratios, strict=True):
        low = side.policy - EXTREME
        reference = None if side.reference is None else (low if ratio > 0 else side.policy)
        sides.append(replace(side, policy=side.policy if ratio > 0 else low, reference=reference))
    return PreferenceBatch(*sides)


def _of_one_token(loss: Loss, logp: float) -> PreferenceBatch:
    batch = probe(loss, dtype=torch.float32)
    return PreferenceBatch(
        *(
            replace(side, policy=torch.full_like(side.policy, logp), tokens=torch.ones_like(side.tokens))
            for side in (batch.chosen, batch.rejected)
        )
    )


def _finite(loss: Loss, batch: PreferenceBatch, point: dict, what: str) -> None:
    found = rows_and_gradients(loss, batch, point)
    for kind, values in zip(("value", "gradient in chosen", "gradient in rejected"), found, strict=True):
        if not values.isfinite().all():
            raise Failure(f"{kind} is not finite for {what} at {point}")


@_check("sign")
def sign(loss: Loss) -> str:
    """A step down the gradient never lowers a chosen response nor raises a rejected one, unless declared."""
    wrong = _first_wrong_sign(loss)
    if wrong is None and loss.sign_exceptions and not loss.modified_by:  # a modifier can do away with an exception
        raise Failure(f"declares an exception that was not met: {loss.sign_exceptions}")
    if wrong is None:
        return "chosen never down, rejected never up"
    if not loss.sign_exceptions:
        raise Failure(f"{wrong}; if that is meant, say when it does so in sign_exceptions")
    raise Declared(loss.sign_exceptions)


def _first_wrong_sign(loss: Loss) -> str | None:
    for scale, point, seed in itertools.product(SCALES, loss.grid(), range(2)):
        _, chosen, rejected = rows_and_gradients(loss, probe(loss, seed=seed, scale=scale), point)
        size = max(chosen.abs().max().item(), rejected.abs().max().item())
        for what, against in (("lowers a chosen", chosen), ("raises a rejected", -rejected)):
            if against.max().item() > 1e-9 * size:
                return f"{what} response at {point} and log-ratios of about {scale:g} nats"
    return None


@_check("order")
def order(loss: Loss) -> str:
    """The order of the examples changes neither the loss nor the gradient of any of them."""
    for seed in range(3):
        batch, generator = probe(loss, seed=seed), torch.Generator().manual_seed(seed)
        first = torch.randperm(len(batch.chosen), generator=generator)
        second = first if loss.data == "paired" else torch.randperm(len(batch.rejected), generator=generator)
        shuffled = PreferenceBatch(rows_of(batch.chosen, first), rows_of(batch.rejected, second))
        before, after = (rows_and_gradients(loss, b, loss.settings()) for b in (batch, shuffled))
        moved = (before[1][first], before[2][second])
        if not all(
            torch.allclose(*pair)
            for pair in zip((before[0].mean(), *moved), (after[0].mean(), *after[1:]), strict=True)
        ):
            raise Failure("the value or a gradient changes when the examples change places")
    return "value and gradients do not depend on it"


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
        raise Failure("rows do not depend on each other: declare couples_examples=False and spare a forward pass")
    if not same and not loss.couples_examples:
        raise Failure("a row changes when the other examples are taken away: declare couples_examples=True")
    return "couples examples" if loss.couples_examples else "each example by itself"


@_check("micro-batches")
def micro_batches(loss: Loss) -> str:
    """Training gives the same loss and gradient however the effective batch is cut and padded."""
    if "scores" in loss.needs:
        raise NotRun("training supplies no scores yet")
    (value, whole), *cut = trained_gradients(loss, budgets=(WIDEST, 60, 1))
    for other, found in cut:
        if abs(other - value) > 1e-5 * max(1.0, abs(value)) or (found - whole).norm() > 1e-4 * whole.norm():
            raise Failure(
                f"the loss or its gradient depends on how the batch is cut: {value:.6g} whole, {other:.6g} cut"
            )
    return "the same, whole and cut"


@_check("needs")
def needs(loss: Loss) -> str:
    """It runs on what it declares, and everything that it declares changes its value."""
    batch = probe(loss)
    loss(batch, **loss.settings())  # holds nothing undeclared: `MissingData` otherwise
    for need in sorted(loss.needs):
        changed = _changed(batch, need)
        if all(torch.equal(loss(batch, **point), loss(changed, **point)) for point in loss.grid()):
            raise Failure(f"declares {need!r} and does not use it: leave it out of needs")
    return ", ".join(sorted(loss.needs)) or "nothing but log-probs and token counts"


def _changed(batch: PreferenceBatch, field: str) -> PreferenceBatch:
    generator = torch.Generator().manual_seed(1)
    return PreferenceBatch(
        *(
            replace(side, **{field: (old := getattr(side, field)) + torch.rand(old.shape, generator=generator)})
            for side in (batch.chosen, batch.rejected)
        )
    )


@_check("reduction")
def reduction(loss: Loss) -> str:
    """Twice as many tokens at the same log-prob per token change a sum, and leave a mean as it is."""
    batch = probe(loss)
    sides = []
    for side in (batch.chosen, batch.rejected):
        reference = None if side.reference is None else 2 * side.reference
        sides.append(replace(side, policy=2 * side.policy, reference=reference, tokens=2 * side.tokens))
    same = torch.allclose(loss(batch, **loss.settings()), loss(PreferenceBatch(*sides), **loss.settings()))
    if same != (loss.reduction == "mean"):
        other = "mean" if same else "sum"
        raise Failure(f"reduction is declared as {loss.reduction!r}, and the loss takes the {other} over tokens")
    return f"{loss.reduction} over tokens"
