"""Dials: the bounds and flags that a configuration field declares, and the two functions that read them."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")

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
            return f" must be a number that fits a float, got {value!r:.20}..."
        if math.isfinite(value) and all(BOUNDS[name](value, limit) for name, limit in self.bounds.items()):
            return ""
        wanted = [" and ".join(f"{name.replace('_', ' ')} {limit:g}" for name, limit in self.bounds.items())]
        if isinstance(value, float) and not {"below", "at_most"} & self.bounds.keys():
            wanted.insert(0, "a number")  # infinity satisfies these bounds but is rejected
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
