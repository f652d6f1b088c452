"""The declaration around a loss function: what it needs, what it returns, which hyper-parameters it has."""

from __future__ import annotations

import inspect
import itertools
import math
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from losses.batch import PreferenceBatch
from losses.bounds import UNBOUNDED, Bounds
from losses.needs import NEEDS
from losses.registry import Registry, RegistryError, nearest, origin_of

DATA_KINDS = ("paired", "unpaired", "listwise")
REDUCTIONS = {"sum": "sum over tokens", "mean": "mean over tokens", "token": "tokens one by one"}
LARGEST = {float: 3.4e38, int: 2**63 - 1}  # the ends of float32, in which losses are computed, and of 64 bits
HYPERPARAMETER_TYPES = (bool, int, float, str)


@dataclass(frozen=True)
class Hyperparameter:
    """One keyword argument of a loss: its type, its default, and the values that a default grid tries."""

    name: str
    type: type
    default: bool | int | float | str
    grid: tuple
    choices: Collection[str] | None = None  # what a str may be, often a registry; None: anything
    bounds: Bounds = UNBOUNDED

    @property
    def kind(self) -> str:
        """The type and the bounds in words: `float above 0`."""
        return f"{self.type.__name__} {self.bounds}".strip()

    def check(self, value: Any, owner: str) -> bool | int | float | str:
        """Return `value` in the declared type, or raise `RegistryError` that says what was expected."""
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) <= sys.float_info.max else math.inf
        kind: Any = type(value)
        fits = kind is self.type and (kind not in LARGEST or abs(value) <= LARGEST[kind])
        if not fits or value not in self.bounds:
            raise RegistryError(f"{owner}: {self.name} must be a {self.kind}, got {value!r}")
        if self.choices is not None and value not in self.choices:
            raise RegistryError(f"{owner}: unknown {self.name} {value!r}{nearest(str(value), self.choices)}")
        return value


@dataclass(frozen=True)
class Loss:
    """A registered loss. Call it with a batch and hyper-parameters to get one value per example (or contrast row)."""

    name: str
    function: Callable[..., Tensor]
    paper: str
    data: str
    needs: frozenset[str]
    reduction: str
    couples_examples: bool
    start_value: Callable[..., float | None] | None
    hyperparameters: Mapping[str, Hyperparameter] = field(hash=False)
    sign_exceptions: str = ""
    modified_by: tuple[Callable[..., Tensor], ...] = ()

    @property
    def functions(self) -> tuple[Callable[..., Tensor], ...]:
        """The functions that make up the loss: its own and those of its modifiers."""
        return (self.function, *self.modified_by)

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").split("\n")[0]

    def settings(self, values: Mapping[str, object] | None = None) -> dict[str, bool | int | float | str]:
        """Return the value of every hyper-parameter, defaults included; raise `RegistryError` for an invalid one."""
        values = dict(values or {})
        for name in values:
            if name not in self.hyperparameters:
                raise RegistryError(
                    f"loss {self.name!r} has no hyper-parameter {name!r}{nearest(name, self.hyperparameters)}"
                )
        owner = f"loss {self.name!r}"
        return {
            name: parameter.check(values[name], owner) if name in values else parameter.default
            for name, parameter in self.hyperparameters.items()
        }

    def grid(self) -> list[dict]:
        """Return the default grid as settings: the product of each hyper-parameter's declared values."""
        axes = [[(name, value) for value in p.grid] for name, p in self.hyperparameters.items() if p.grid]
        return [self.settings(dict(point)) for point in itertools.product(*axes)]

    def start(self, settings: Mapping[str, object]) -> float | None:
        """Return the value that every row must have when policy = reference, or None where it depends on the data."""
        value = None if self.start_value is None else self.start_value(**settings)
        return None if value is None else float(value)

    def __call__(self, batch: PreferenceBatch, **settings: Any) -> Tensor:
        """Return the loss of each row, `(rows,)`; the loss of the batch is their mean."""
        settings = self.settings(settings)
        if self.data != "unpaired" and len(batch.chosen) != len(batch.rejected):
            raise ValueError(
                f"loss {self.name!r} compares pairs: "
                f"{len(batch.chosen)} chosen and {len(batch.rejected)} rejected do not pair up"
            )
        rows = self.function(batch, **settings)
        expected = len(batch.chosen) + (len(batch.rejected) if self.data == "unpaired" else 0)
        any_number = self.data == "unpaired" and self.couples_examples  # the rows of its contrast
        if rows.ndim != 1 or not (any_number or len(rows) == expected):
            raise ValueError(
                f"loss {self.name!r} must return one value per row ({'1-D' if any_number else expected}) and leave "
                f"their mean to the backbone; it returned shape {tuple(rows.shape)}"
            )
        return rows


LOSSES: Registry[Loss] = Registry("loss")


def register_loss(
    name: str,
    *,
    paper: str = "",
    grid: Mapping[str, Iterable] | None = None,
    data: str = "paired",
    needs: Iterable[str] = ("reference",),
    reduction: str = "sum",
    couples_examples: bool = False,
    start_value: Callable[..., float | None] | None = None,
    sign_exceptions: str = "",
    choices: Mapping[str, Collection[str]] | None = None,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a loss: a function of a `PreferenceBatch` whose keyword-only arguments are its hyper-parameters.

    An annotation such as `Annotated[float, Bounds(above=0)]`, or `Positive` (bounds.py), bounds their values.

    - `paper`: arXiv number; `grid`: the values to try for each hyper-parameter.
    - `data`: "paired", "unpaired" or "listwise" (the loss reads `batch.lists`).
    - `needs`: names from `losses.needs.NEEDS` that the backbone must supply.
    - `reduction`: how the token log-probs of a completion enter the loss: "sum", "mean" or "token" (individually).
    - `couples_examples`: true if the value of a row depends on other rows of the effective batch.
    - `start_value`: the loss at policy = reference as a function of the hyper-parameters (None where it depends on
      the data); training checks it.
    - `sign_exceptions`: a clause saying when, if ever, the loss lowers a chosen response or raises a rejected one.
    - `choices`: the allowed values of each str hyper-parameter that does not accept any string.

    Returns the function unchanged. Raises `RegistryError` for an invalid declaration.
    """

    def decorate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        origin = origin_of(function)
        where = f"loss {name!r} ({origin})"
        one_of(where, "data", data, DATA_KINDS)
        one_of(where, "reduction", reduction, REDUCTIONS)
        for need in needs:
            one_of(where, "needs", need, NEEDS)
        if data == "listwise" and "token_values" in needs:
            raise RegistryError(
                f"{where}: token_values are of chosen and rejected responses, and a listwise loss has more"
            )
        loss = Loss(
            name=name,
            function=function,
            paper=paper,
            data=data,
            needs=frozenset(needs),
            reduction=reduction,
            couples_examples=couples_examples,
            start_value=start_value,
            hyperparameters=hyperparameters_of(function, grid or {}, choices or {}, where),
            sign_exceptions=sign_exceptions,
        )
        if start_value is not None:
            try:
                inspect.signature(start_value).bind(**loss.settings())
            except TypeError as error:
                raise RegistryError(f"{where}: start_value must take the hyper-parameters by name: {error}") from None
        LOSSES.add(name, loss, origin)
        return function

    return decorate


def list_losses() -> list[str]:
    """Return the names of all registered losses, in the order of registration."""
    return list(LOSSES)


def one_of(where: str, what: str, value: str, allowed: Collection[str]) -> None:
    """Raise `RegistryError`, suggesting the nearest allowed value, if `value` is not allowed."""
    if value not in allowed:
        raise RegistryError(f"{where}: {what} is {value!r}{nearest(value, allowed)}")


def hyperparameters_of(
    function: Callable, grid: Mapping[str, Iterable], choices: Mapping[str, Collection[str]], where: str, skip: int = 1
) -> dict[str, Hyperparameter]:
    """Return a function's arguments after the first `skip`; raise `RegistryError` for an invalid one."""
    keywords = list(inspect.signature(function).parameters.values())[skip:]
    types = typing.get_type_hints(function, include_extras=True)
    hyperparameters = {}
    for keyword in keywords:
        if keyword.kind is not keyword.KEYWORD_ONLY or keyword.default is keyword.empty:
            raise RegistryError(f"{where}: {keyword.name!r} must be keyword-only (after *) and have a default")
        kind = types.get(keyword.name, type(keyword.default))
        stated = kind.__metadata__ if typing.get_origin(kind) is typing.Annotated else ()
        bounds = next((extra for extra in stated if isinstance(extra, Bounds)), UNBOUNDED)
        kind = kind.__origin__ if stated else kind
        if kind not in HYPERPARAMETER_TYPES:
            raise RegistryError(f"{where}: {keyword.name!r} must be a bool, int, float or str")
        parameter = Hyperparameter(keyword.name, kind, keyword.default, (), choices.get(keyword.name), bounds)
        hyperparameters[keyword.name] = replace(
            parameter,
            default=parameter.check(keyword.default, where),
            grid=tuple(parameter.check(value, where) for value in grid.get(keyword.name, ())),
        )
    for what, named in (("grid names", grid), ("choices name", choices)):
        for name in named:
            if name not in hyperparameters:
                raise RegistryError(
                    f"{where}: the {what} {name!r}, which is no argument{nearest(name, hyperparameters)}"
                )
    return hyperparameters
