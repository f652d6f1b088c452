"""From JSON to dataclasses: values are checked against the declared types, with clear errors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def from_json(kind: type[T], value: object) -> T:
    """Return a JSON object as the dataclass `kind`; its fields may be dataclasses, None, tuples and mappings.

    A missing field takes its default; unknown fields are ignored. Elements of tuples of plain values and contents of
    mappings are not checked. Raises `ValueError` that names the field which is missing or has the wrong type.
    """
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
    if isinstance(hint, type) and is_dataclass(hint):
        return lambda value: from_json(hint, value)
    if origin is tuple and is_dataclass(arguments[0]):
        return lambda value: tuple(from_json(arguments[0], element) for element in _of_type(list, value))
    if origin is tuple:
        return lambda value: tuple(_of_type(list, value))
    return lambda value: _of_type(dict if origin else hint, value)  # a type with an origin is a mapping


def _of_type(wanted: type, value: Any) -> Any:
    if type(value) is wanted or (wanted is float and type(value) is int and abs(value) <= sys.float_info.max):
        return value
    raise ValueError(f"expected {wanted.__name__}, got {value!r:.60}")
