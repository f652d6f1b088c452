"""Dials: the bounds and flags that a configuration field declares, and the two functions that read them."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")
INTEGERS = 2**63  # the upper bound of what is declared without one, as that of the integers of libraries
FAR = 10**6  # a bound beyond it is told only to who crosses it
LARGEST = 3.4e38  # the end of float32, in which models compute

BOUNDS: dict[str, Callable[[float, float], bool]] = {
    "above": operator.gt,
    "at_least": operator.ge,
    "below": operator.lt,
    "at_most": operator.le,
}


@dataclass(frozen=True)
class Dial:
    """The arguments of `dial`. A field declared without `dial` is numeric and has no bounds."""

    bounds: Mapping[str, float]
    numeric: bool
    parse: Callable[[str], object] | None

    @classmethod
    def of(cls, declared: Field) -> Dial:
        """Return the dial of a dataclass field."""
        return declared.metadata.get("dial", cls({}, True, None))

    def problem(self, value: object) -> str:
        """Return what is wrong with a value, as text that follows its key in a message; "" if valid (as None is)."""
        if isinstance(value, str) and self.parse:
            try:
                self.parse(value)
            except ValueError as error:
                return f": {error}"
        if not isinstance(value, (int, float)):
            return ""
        if isinstance(value, int) and abs(value) > sys.float_info.max:
            shown = f"{value!r:.20}..." if value.bit_length() < 10_000 else "one of thousands of digits"
            return f" must be a number that fits a float, got {shown}"
        open_ended = not {"below", "at_most"} & self.bounds.keys()
        if isinstance(value, int) and open_ended and abs(value) >= INTEGERS:
            return f" must be a number of 64 bits, got {value}"
        if abs(value) <= LARGEST and all(BOUNDS[name](value, limit) for name, limit in self.bounds.items()):
            return ""
        told = {name: limit for name, limit in self.bounds.items() if limit < FAR or not BOUNDS[name](value, limit)}
        wanted = [" and ".join(f"{name.replace('_', ' ')} {limit:g}" for name, limit in told.items())]
        if isinstance(value, float) and open_ended:
            wanted.insert(0, "a number")  # NaN, infinity or what float32 takes for infinity
        return f" must be {' '.join(filter(None, wanted))}, got {value}"


def dial(default: T, *, numeric: bool = True, parse: Callable[[str], object] | None = None, **bounds: float) -> T:
    """Declare a configuration field: its default (a list or dict is copied), its bounds, and whether it is `numeric`.

    `bounds` are keyword arguments named in `BOUNDS`; messages list them in the order they are passed, and for a list
    or dict they apply to each value. A value with `numeric=False` is not part of any key: it changes no result, or only
    through data whose content is in the key. `parse` must raise `ValueError` for malformed text.

    Raises `TypeError` for a bound that is not in `BOUNDS`.
    """
    if unknown := bounds.keys() - BOUNDS.keys():
        raise TypeError(f"a dial has no bound {min(unknown)!r}; there are {', '.join(BOUNDS)}")
    metadata = {"dial": Dial(bounds, numeric, parse)}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def numeric(section: Any) -> dict[str, Any]:
    """Return what a configuration section contributes to a key: its numeric dials, without nested sections."""
    values = {each.name: getattr(section, each.name) for each in fields(section) if Dial.of(each).numeric}
    return {name: value for name, value in values.items() if not is_dataclass(value)}


def out_of_bounds(section: Any, prefix: str = "") -> Iterator[str]:
    """Yield one line per value that its dial does not allow, in a configuration section and its nested sections."""
    for each in fields(section):
        key, value = f"{prefix}{each.name}", getattr(section, each.name)
        if is_dataclass(value):
            yield from out_of_bounds(value, f"{key}.")
        elif isinstance(value, dict):
            for name, inner in value.items():
                if is_dataclass(inner):
                    yield from out_of_bounds(inner, f"{key}.{name}.")
                elif problem := Dial.of(each).problem(inner):
                    yield f"{key}.{name}{problem}"
        else:
            problems = map(Dial.of(each).problem, value if isinstance(value, list) else [value])
            yield from (f"{key}{problem}" for problem in problems if problem)
