"""From JSON to dataclasses: values are checked against the declared types, with clear errors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def from_json(kind: type[T], value: object) -> T:
    """Return a JSON value as `kind`: a dataclass, or one of the types that its fields may have.

    Fields may be plain values, dataclasses, None, lists, tuples of one type and mappings from text; what these hold
    is checked too. A missing field takes its default; unknown fields are ignored. Raises `ValueError` that names the
    field which is missing or has the wrong type.
    """
    if not is_dataclass(kind):
        return _converter(kind)(value)
    if not isinstance(value, dict):
        raise ValueError(f"expected the fields of a {kind.__name__}, got {value!r:.60}")
    values = {}
    for name, convert, required in _fields(kind):  # type: ignore[arg-type]  # mypy: a class has a hash
        if name in value:
            try:
                values[name] = convert(value[name])
            except ValueError as error:
                raise ValueError(f"field {name!r}: {error}") from None
        elif required:
            raise ValueError(f"no field {name!r}")
    return kind(**values)


@cache
def _fields(kind: Any) -> list[tuple[str, Callable[[Any], Any], bool]]:
    """Return each field's name, the converter for its value, and whether it is required (has no default)."""
    types = get_type_hints(kind)
    return [(f.name, _converter(types[f.name]), f.default is f.default_factory is MISSING) for f in fields(kind)]


def _converter(hint: Any) -> Callable[[Any], Any]:
    """Return a function that converts a JSON value to this type, or raises `ValueError`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if NoneType in arguments:
        some = _converter(next(argument for argument in arguments if argument is not NoneType))
        return lambda value: None if value is None else some(value)
    if hint in (Any, object):
        return lambda value: value
    if origin is Literal:
        return lambda value: _one_of(arguments, value)
    if origin in (list, tuple):
        every = _every(arguments[0])
        return lambda value: origin(every(_of_type(list, value)))
    if origin is not None:  # a mapping
        values = _every(arguments[1])
        return lambda value: dict(zip(_of_type(dict, value), values(list(value.values())), strict=True))
    if is_dataclass(hint):
        return lambda value: from_json(hint, value)  # type: ignore[arg-type]  # a class, not an instance
    return lambda value: _of_type(hint, value)


def _every(hint: Any) -> Callable[[list], list]:
    """Return a function that converts a list whose elements are of this type."""
    convert = _converter(hint)

    def all_of(values: list) -> list:
        if set(map(type, values)) <= {hint}:  # thousands of token ids: quicker than one by one
            return values
        return [convert(value) for value in values]

    return all_of


def _one_of(known: tuple, value: Any) -> Any:
    if value in known:
        return value
    raise ValueError(f"expected one of {', '.join(map(repr, known))}, got {value!r:.60}")


def _of_type(wanted: type, value: Any) -> Any:
    if type(value) is wanted or (wanted is float and type(value) is int and abs(value) <= sys.float_info.max):
        return value
    raise ValueError(f"expected {wanted.__name__}, got {value!r:.60}")
