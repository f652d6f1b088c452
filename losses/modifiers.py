"""Modifiers that turn a compatible loss into a new one, requested by name: `dpo+label_smoothing`.

A modified loss is a loss like any other: it has the hyper-parameters of both parts, and grids, checks, plots and tables
accept its name. Several modifiers apply from left to right.

The divergences were checked against TRL's f_divergence_type, which leaves out constants that cancel in a margin.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn.functional import logsigmoid

from losses.batch import PreferenceBatch
from losses.needs import NEEDS
from losses.numerics import exp
from losses.probe import probe
from losses.registry import Registry, RegistryError, origin_of
from losses.spec import LOSSES, Hyperparameter, Loss, hyperparameters_of, one_of

Rows = Callable[[PreferenceBatch], Tensor]


@dataclass(frozen=True)
class Modifier:
    """A registered modifier: `function(loss, batch, *, ...)` returns the rows of the modified loss.

    `of_logratios`: it transforms log-ratios, and so applies only to losses that are functions of them; other modifiers
    apply to paired losses. `keeps_start`: the value at policy = reference does not change. `needs`: what the backbone
    must supply in addition to the needs of the loss.
    """

    name: str
    function: Callable[..., Tensor]
    paper: str
    of_logratios: bool
    keeps_start: bool
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
    of_logratios: bool = False,
    keeps_start: bool = True,
    sign_exceptions: str = "",
    needs: Iterable[str] = (),
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register `f(loss, batch, *, ...)`, where `loss(batch)` returns the rows of the loss to modify."""

    def decorate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        origin = origin_of(function)
        where = f"modifier {name!r} ({origin})"
        for need in needs:
            one_of(where, "needs", need, NEEDS)
        hyperparameters = hyperparameters_of(function, grid or {}, {}, where, skip=2)
        modifier = Modifier(
            name, function, paper, of_logratios, keeps_start, sign_exceptions, frozenset(needs), hyperparameters
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
    """Return `loss` with a modifier applied; raise `RegistryError` if the two are incompatible."""
    name = f"{loss.name}+{modifier.name}"
    if modifier.of_logratios and "reference" not in loss.needs:
        raise RegistryError(f"loss {name!r}: {modifier.name} acts on log-ratios, and {loss.name} has no reference")
    if modifier.of_logratios and loss.reduction == "token":
        raise RegistryError(
            f"loss {name!r}: {modifier.name} acts on log-ratios of responses, and {loss.name} takes tokens"
        )
    if modifier.of_logratios and not _reads_logratios(loss):
        raise RegistryError(
            f"loss {name!r}: {modifier.name} acts on log-ratios, and {loss.name} is no function of them"
        )
    if not modifier.of_logratios and loss.data != "paired":
        raise RegistryError(f"loss {name!r}: {modifier.name} is for paired losses, and {loss.name} is {loss.data}")
    shared = set(loss.hyperparameters) & set(modifier.hyperparameters)
    if shared:
        raise RegistryError(f"loss {name!r}: both parts have a hyper-parameter {min(shared)!r}")

    def function(batch: PreferenceBatch, **settings: object) -> Tensor:
        own = {key: settings.pop(key) for key in modifier.hyperparameters}
        return modifier.function(lambda view: loss.function(view, **settings), batch, **own)

    def start_value(**settings: object) -> float | None:
        return loss.start({key: settings[key] for key in loss.hyperparameters}) if modifier.keeps_start else None

    function.__doc__ = f"{loss.summary} Modified: {modifier.summary}"
    return replace(
        loss,
        name=name,
        function=function,
        paper=", ".join(filter(None, (loss.paper, modifier.paper))),
        needs=loss.needs | modifier.needs,
        reduction="sum" if modifier.of_logratios else loss.reduction,  # it acts on summed log-ratios
        start_value=start_value,
        hyperparameters={**loss.hyperparameters, **modifier.hyperparameters},
        sign_exceptions="; ".join(filter(None, (loss.sign_exceptions, modifier.sign_exceptions))),
        modified_by=(*loss.functions, modifier.function),
    )


def _reads_logratios(loss: Loss) -> bool:
    """Run the loss on a random batch and return whether it reads log-ratios."""
    asked: list[Tensor] = []

    def noted(logratios: Tensor) -> Tensor:
        asked.append(logratios)
        return logratios

    linked(lambda view: loss.function(view, **loss.settings()), probe(loss), noted)
    return bool(asked)


@register_modifier(
    "label_smoothing",
    grid={"label_smoothing": [0.1, 0.2]},
    sign_exceptions="pulls a pair back where the loss for its flipped label outweighs that for its own",
)
def label_smoothing(loss: Rows, batch: PreferenceBatch, *, label_smoothing: float = 0.1) -> Tensor:
    """Assumes labels flipped with probability eps: (1 - eps) * L(chosen, rejected) + eps * L(rejected, chosen)."""
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be from 0 to below 0.5, got {label_smoothing}")
    flipped = batch.changed(lambda parts: parts[::-1])
    return (1 - label_smoothing) * loss(batch) + label_smoothing * loss(flipped)


@register_modifier("nll", grid={"nll_weight": [0.005, 0.2, 1.0]}, keeps_start=False)
def nll(loss: Rows, batch: PreferenceBatch, *, nll_weight: float = 1.0) -> Tensor:
    """Adds nll_weight times the chosen response's NLL per token: L - nll_weight * l_w / |y_w|."""
    return loss(batch) - nll_weight * batch.chosen.mean_policy


@register_modifier("wpo", paper="2406.11827", needs=["confidence"], keeps_start=False)
def wpo(loss: Rows, batch: PreferenceBatch) -> Tensor:
    """Weights pairs by the policy's confidence c per token in both responses: min(1, exp(c_w + c_l)) * L."""
    confidence = batch.chosen.require("confidence") + batch.rejected.require("confidence")
    return confidence.exp().clamp(max=1.0) * loss(batch)


@register_modifier("forward_kl", paper="2309.16240", of_logratios=True)
def forward_kl(loss: Rows, batch: PreferenceBatch) -> Tensor:
    """f-DPO with the forward KL: 1 - exp(-s) replaces every log-ratio s."""
    return linked(loss, batch, lambda s: 1 - exp(-s))


@register_modifier("js", paper="2309.16240", of_logratios=True)
def js(loss: Rows, batch: PreferenceBatch) -> Tensor:
    """f-DPO with the Jensen-Shannon divergence: log(2 sigmoid(s)) replaces every log-ratio s."""
    return linked(loss, batch, lambda s: logsigmoid(s) + math.log(2))


@register_modifier(
    "alpha_divergence", paper="2309.16240", grid={"divergence_alpha": [0.3, 0.5, 0.7]}, of_logratios=True
)
def alpha_divergence(loss: Rows, batch: PreferenceBatch, *, divergence_alpha: float = 0.5) -> Tensor:
    """f-DPO with an alpha-divergence: (exp((a - 1) * s) - 1) / (a - 1) replaces every log-ratio s."""
    power = divergence_alpha - 1
    if power == 0:
        raise ValueError("divergence_alpha = 1 is the reverse KL, which is the loss without this modifier")
    return linked(loss, batch, lambda s: (exp(power * s) - 1) / power)


def linked(loss: Rows, batch: PreferenceBatch, link: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the rows of the loss with every log-ratio s replaced by `link(s)`.

    A link is f'(ratio) of the divergence, with f'(1) = 0, so that the start value does not change.
    """
    return loss(batch.changed(lambda parts: [replace(part, link=link) for part in parts]))
