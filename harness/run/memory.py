"""What a process keeps in memory while it works: loaded models, token data, judges."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

T = TypeVar("T")


class Memory:
    """Things by kind and key, each made on first use. Of a kind with a limit only the last ones used are kept."""

    def __init__(self, limits: Mapping[str, int]):
        self._limits = limits
        self._kinds: dict[str, dict[Hashable, object]] = {}

    def get(self, kind: str, key: Hashable, make: Callable[[], T]) -> T:
        """Return the thing of this kind and key, made by `make()` if it is not there. What must go goes before."""
        things = self._kinds.setdefault(kind, {})
        if key in things:
            things[key] = things.pop(key)  # used last
            return things[key]  # type: ignore[return-value]
        while len(things) >= self._limits.get(kind, len(things) + 1):
            del things[next(iter(things))]
        things[key] = make()
        return things[key]  # type: ignore[return-value]

    def drop(self, kind: str) -> None:
        """Forget all things of a kind."""
        self._kinds.pop(kind, None)
