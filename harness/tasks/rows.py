"""A row of data as read: its columns, its position in the source, and its split."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from harness.core.errors import UserError

# The words that name a split in files, folders and `split` columns; the same as the hub's.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "dev": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


@dataclass(frozen=True)
class Row:
    """One row of a source: its columns, its position ("file:line" or similar), and its split, None if unknown."""

    values: dict[str, Any]
    where: str
    split: str | None = None

    def get(self, column: str) -> Any:
        """Return the column's value; a null counts as absent (None)."""
        return self.values.get(column)


def not_empty(rows: Iterable[Row], source: str) -> Iterator[Row]:
    """Yield the rows unchanged; raises `UserError` if there are none."""
    row = None
    for row in rows:
        yield row
    if row is None:
        raise UserError(f"{source} is empty: it holds no rows")


def make_row(values: object, where: str, split: str | None) -> Row:
    """Return a row; a `split` column overrides `split`. Raises `UserError` for a value that is not a row."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: a row must be an object of columns, got {type(values).__name__}")
    named = values.get("split")
    if named is not None:
        split = split_of(named) if isinstance(named, str) else None
        if split is None:
            words = ", ".join(word for words in SPLIT_WORDS.values() for word in words)
            raise UserError(f"{where}: column 'split' holds {named!r}, which names no split; accepted: {words}")
    return Row(values, where, split)


def characters_in(value: object) -> int:
    """Return how many characters a value holds, in its strings at any depth."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(characters_in(inner) for inner in value.values())
    return sum(map(characters_in, value)) if isinstance(value, (list, tuple)) else 0


def split_of(name: str) -> str | None:
    """Return the split ("train", "dev" or "test") in a name such as "train-00000-of-00001" or "valid2", else None."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for word in words for split, known in SPLIT_WORDS.items() if word in known), None)
