"""What a process keeps in memory while it works: loaded models, token data, judges."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

T = TypeVar("T")


class Memory:
    """Objects by kind and key, each made on first use. A kind with a limit keeps only the most recently used."""

    def __init__(self, limits: Mapping[str, int]):
        self._limits = limits
        self._kinds: dict[str, dict[Hashable, object]] = {}

    def get(self, kind: str, key: Hashable, make: Callable[[], T]) -> T:
        """Return the object of this kind and key, made by `make()` if it is missing.

        What exceeds the limit of the kind is evicted before `make()` is called.
        """
        things = self._kinds.setdefault(kind, {})
        if key in things:
            things[key] = things.pop(key)  # now the most recently used
            return things[key]  # type: ignore[return-value]
        while len(things) >= self._limits.get(kind, len(things) + 1):
            del things[next(iter(things))]
        things[key] = make()
        return things[key]  # type: ignore[return-value]

    def drop(self, kind: str) -> None:
        """Drop all objects of a kind."""
        self._kinds.pop(kind, None)
