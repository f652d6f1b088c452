"""Values of environment variables that look like secrets, so that none of them is shown or written down."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

SECRET_NAMES = re.compile(r"KEY(?!BOARD)|TOKEN(?!IZ)|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
SHORTEST_SECRET = 8  # characters; a shorter value may occur in ordinary text


def secrets() -> dict[str, str]:
    """Return the values that look like secrets, with the names of their variables, the longest value first.

    A variable counts by its name. A value that is a path which exists is no secret.
    """
    found = {
        value: name
        for name, text in os.environ.items()
        if SECRET_NAMES.search(name) and len(value := text.strip()) >= SHORTEST_SECRET and not _is_path(value)
    }
    return {value: found[value] for value in sorted(found, key=len, reverse=True)}


def masked(text: str, known: Mapping[str, str] | None = None) -> str:
    """Return text with every secret replaced by the name of its variable, as in `(OPENAI_API_KEY)`.

    `known` is what `secrets()` returned, for many texts at once.
    """
    if len(text) < SHORTEST_SECRET:
        return text
    return _masked(text, secrets() if known is None else known)


def all_masked(value: object) -> object:
    """Return a JSON value with every secret in its strings and keys masked."""
    known = secrets()
    return _masked(value, known) if known else value


def secret_in(text: str) -> str | None:
    """Return the name of a variable whose secret the text holds, or None."""
    if len(text) < SHORTEST_SECRET:
        return None
    return next((name for value, name in secrets().items() if value in text), None)


def _masked(value: Any, known: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for secret, name in known.items():
            value = value.replace(secret, f"({name})")
        return value
    if isinstance(value, Mapping):
        return {_masked(name, known): _masked(inner, known) for name, inner in value.items()}
    return [_masked(inner, known) for inner in value] if isinstance(value, (list, tuple)) else value


def _is_path(value: str) -> bool:
    try:
        return os.path.isabs(value) and os.path.exists(value)
    except ValueError:  # a null byte
        return False
