"""Modifiers that turn a compatible loss into a new one, requested by name: `dpo+label_smoothing`.

A modified loss is a loss like any other: it has the hyper-parameters of both parts, and grids, checks, plots and tables
accept its name. Several modifiers apply from left to right.

The divergences were checked against TRL's f_divergence_type, which leaves out constants that cancel in a margin.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.batch import PreferenceBatch
from losses.bounds import Bounds, FlipRate, NonNegative
from losses.fits import labels, margins, pairs, single_pairs
from losses.needs import NEEDS
from losses.numerics import exp
from losses.probe import at_start, probe
from losses.registry import Registry, RegistryError, origin_of
from losses.spec import LOSSES, REDUCTIONS, Hyperparameter, Loss, hyperparameters_of, one_of

Rows = Callable[[PreferenceBatch], Tensor]


@dataclass(frozen=True)
class Modifier:
    """A registered modifier: `function(loss, batch, *, ...)` returns the rows of the modified loss.

    `fits(loss)` says why it does not fit a loss, "" if it does (see fits.py). `keeps_start`: the value at policy =
    reference does not change. `reduction`: how log-probs enter the modified loss, if not as they enter the loss.
    `needs`: what the backbone must supply in addition to the needs of the loss.
    """

    name: str
    function: Callable[..., Tensor]
    paper: str
    fits: Callable[[Loss], str]
    keeps_start: bool
    reduction: str | None
    sign_exceptions: str
    needs: frozenset[str]
    hyperparameters: Mapping[str, Hyperparameter]

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").split("\n")[0]


MODIFIERS: Registry[Modifier] = Registry("modifier")


def register_modifier(
    name: str,
    *,
    paper: str = "",
    grid: Mapping[str, Iterable] | None = None,
    fits: Callable[[Loss], str] = pairs,
    keeps_start: bool = True,
    reduction: str | None = None,
    sign_exceptions: str = "",
    needs: Iterable[str] = (),
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register `f(loss, batch, *, ...)`, where `loss(batch)` returns the rows of the loss to modify.

    The arguments are those of `Modifier`. Raises `RegistryError` for an invalid declaration.
    """

    def decorate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        origin = origin_of(function)
        where = f"modifier {name!r} ({origin})"
        for need in needs:
            one_of(where, "needs", need, NEEDS)
        if reduction is not None:
            one_of(where, "reduction", reduction, REDUCTIONS)
        hyperparameters = hyperparameters_of(function, grid or {}, {}, where, skip=2)
        modifier = Modifier(
            name, function, paper, fits, keeps_start, reduction, sign_exceptions, frozenset(needs), hyperparameters
        )
        MODIFIERS.add(name, modifier, origin)
        return function

    return decorate


def get_loss(name: str) -> Loss:
    """Return the loss `name`, of the form `loss` or `loss+modifier+...`; raise `RegistryError` for an unknown part."""
    base, *modifiers = name.split("+")
    loss = LOSSES.get(base)
    for modifier in modifiers:
        loss = modified(loss, MODIFIERS.get(modifier))
    return loss


def modified(loss: Loss, modifier: Modifier) -> Loss:
    """Return `loss` with a modifier applied.

    Raises `RegistryError` if they do not fit: the modifier says so, or the result fails on random log-probs, or its
    value at policy = reference is not what it would declare.
    """
    name = f"{loss.name}+{modifier.name}"
    shared = set(loss.hyperparameters) & set(modifier.hyperparameters)
    if shared:
        raise RegistryError(f"loss {name!r}: both parts have a hyper-parameter {min(shared)!r}")

    def function(batch: PreferenceBatch, **settings: object) -> Tensor:
        own = {key: settings.pop(key) for key in modifier.hyperparameters}
        return modifier.function(lambda view: loss.function(view, **settings), batch, **own)

    def start_value(**settings: object) -> float | None:
        return loss.start({key: settings[key] for key in loss.hyperparameters}) if modifier.keeps_start else None

    function.__doc__ = f"{loss.summary} Modified: {modifier.summary}"
    result = replace(
        loss,
        name=name,
        function=function,
        paper=", ".join(filter(None, (loss.paper, modifier.paper))),
        needs=loss.needs | modifier.needs,
        reduction=modifier.reduction or loss.reduction,
        start_value=start_value,
        hyperparameters={**loss.hyperparameters, **modifier.hyperparameters},
        sign_exceptions="; ".join(filter(None, (loss.sign_exceptions, modifier.sign_exceptions))),
        modified_by=(*loss.functions, modifier.function),
    )
    try:
        reason = modifier.fits(loss) or _other_start(result)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's loss or modifier can raise anything, sys.exit's error included
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RegistryError(f"loss {name!r} fails on random log-probs: {told}") from error
    if reason:
        raise RegistryError(f"loss {name!r}: {modifier.name} {reason}")
    return result


def _other_start(loss: Loss) -> str:
    """Run a modified loss on random log-probs; return what is wrong with its start value, "" if nothing is."""
    batch = probe(loss)
    loss(batch)
    rows, start = loss(at_start(batch)), loss.start(loss.settings())
    if start is None or torch.allclose(rows, torch.full_like(rows, start), rtol=1e-6, atol=1e-9):
        return ""
    return f"changes the start value, declared to stay {start:.6g}, to {rows.mean().item():.6g}"


def fitting(loss: Loss) -> list[Loss]:
    """Return the loss with each of the registered modifiers that fit it."""
    results = []
    for modifier in map(MODIFIERS.get, MODIFIERS):
        with contextlib.suppress(RegistryError):
            results.append(modified(loss, modifier))
    return results


@register_modifier(
    "label_smoothing",
    grid={"label_smoothing": [0.1, 0.2]},
    fits=labels,
    sign_exceptions="pulls a pair back where the loss for its flipped label outweighs that for its own",
)
def label_smoothing(loss: Rows, batch: PreferenceBatch, *, label_smoothing: FlipRate = 0.1) -> Tensor:
    """Assumes labels flipped with probability eps: (1 - eps) * L + eps * L with the sign of its logit reversed.

    The logit includes a target margin; a likelihood term is no part of it and stays. This is the form of cDPO, and of
    the authors' code and TRL for CPO, SimPO and AOT. For the other losses no source is known.
    """
    flipped = replace(batch, flipped=not batch.flipped)
    return (1 - label_smoothing) * loss(batch) + label_smoothing * loss(flipped)


@register_modifier("nll", grid={"nll_weight": [0.005, 0.2, 1.0]}, keeps_start=False)
def nll(loss: Rows, batch: PreferenceBatch, *, nll_weight: NonNegative = 1.0) -> Tensor:
    """Adds nll_weight times the chosen response's NLL per token: L - nll_weight * l_w / |y_w|."""
    return loss(batch) - nll_weight * batch.chosen.mean_policy


@register_modifier("wpo", paper="2406.11827", fits=single_pairs, needs=["confidence"], keeps_start=False)
def wpo(loss: Rows, batch: PreferenceBatch) -> Tensor:
    """Weights pairs by the policy's confidence c per token in both responses: min(1, exp(c_w + c_l)) * L."""
    confidence = batch.chosen.require("confidence") + batch.rejected.require("confidence")
    return confidence.exp().clamp(max=1.0) * loss(batch)


@register_modifier("forward_kl", paper="2309.16240", fits=margins, reduction="sum")
def forward_kl(loss: Rows, batch: PreferenceBatch) -> Tensor:
    """f-DPO with the forward KL: 1 - exp(-s) replaces every log-ratio s."""
    return linked(loss, batch, lambda s: 1 - exp(-s))


@register_modifier("js", paper="2309.16240", fits=margins, reduction="sum")
def js(loss: Rows, batch: PreferenceBatch) -> Tensor:
    """f-DPO with the Jensen-Shannon divergence: log(2 sigmoid(s)) replaces every log-ratio s."""
    return linked(loss, batch, lambda s: logsigmoid(s) + math.log(2))


@register_modifier(
    "alpha_divergence",
    paper="2309.16240",
    grid={"divergence_alpha": [0.3, 0.5, 0.7]},
    fits=margins,
    reduction="sum",
)
def alpha_divergence(
    loss: Rows,
    batch: PreferenceBatch,
    *,
    divergence_alpha: Annotated[float, Bounds(at_least=0, below=1)] = 0.5,
) -> Tensor:
    """f-DPO with an alpha-divergence: (exp((a - 1) * s) - 1) / (a - 1) replaces every log-ratio s."""
    power = divergence_alpha - 1  # 0 would be the reverse KL, which is the loss without this modifier
    return linked(loss, batch, lambda s: (exp(power * s) - 1) / power)


def linked(loss: Rows, batch: PreferenceBatch, link: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the rows of the loss with every log-ratio s replaced by `link(s)`.

    A link is f'(ratio) of the divergence, with f'(1) = 0, so that the start value does not change.
    """
    return loss(batch.changed(lambda parts: [replace(part, link=link) for part in parts]))
