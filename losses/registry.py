"""The registry type of every kind of plugin: losses, tasks, judges and others.

Registering a name twice is an error that names both places; looking up an unknown name suggests the nearest one.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class RegistryError(ValueError):
    """A name or a declaration that a registry rejects. The message is one line, written for the user."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest of `known`, or list them all if none is close."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def origin_of(function: Callable) -> str:
    """Return `file:line` where a function is defined, for messages and listings."""
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if code is not None:
        return f"{code.co_filename}:{code.co_firstlineno}"
    try:
        return f"{inspect.getsourcefile(function)}:{inspect.getsourcelines(function)[1]}"
    except (OSError, TypeError):
        return f"module {getattr(function, '__module__', '?')}"


class Registry(Generic[T]):
    """A mapping from names to entries of one `kind` ("loss", "task", ...), each with the place it came from."""

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._origins: dict[str, str] = {}

    def add(self, name: str, entry: T, origin: str) -> None:
        """Register `entry`; raise `RegistryError` naming both places if the name is already registered elsewhere.

        Registering again from the same place replaces the entry, so that a notebook cell or a reloaded
        plugin file can be run twice.
        """
        if name in self._entries and self._origins[name] != origin:
            raise RegistryError(
                f"the {self.kind} {name!r} is registered twice: at {self._origins[name]} and at {origin}"
            )
        self._entries[name] = entry
        self._origins[name] = origin

    def get(self, name: str) -> T:
        """Return the entry; raise `RegistryError` suggesting the nearest name if there is none."""
        if name not in self._entries:
            raise RegistryError(f"unknown {self.kind} {name!r}{nearest(name, self._entries)}")
        return self._entries[name]

    def origin(self, name: str) -> str:
        """Return where the entry was registered, as `file:line`."""
        self.get(name)
        return self._origins[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
