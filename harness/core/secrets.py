"""Values of environment variables that look like secrets, so that none of them is shown or written down."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

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


def masked(text: str) -> str:
    """Return text with every secret replaced by the name of its variable, as in `(OPENAI_API_KEY)`."""
    for value, name in secrets().items():
        text = text.replace(value, f"({name})")
    return text


def all_masked(value: object) -> object:
    """Return a JSON value with every secret in its strings and keys masked."""
    known = secrets()
    if not known:
        return value

    def walk(value: object) -> object:
        if isinstance(value, str):
            return masked(value)
        if isinstance(value, Mapping):
            return {masked(name) if isinstance(name, str) else name: walk(inner) for name, inner in value.items()}
        return [walk(inner) for inner in value] if isinstance(value, (list, tuple)) else value

    return walk(value)


def secret_in(text: str) -> str | None:
    """Return the name of a variable whose secret the text holds, or None."""
    return next((name for value, name in secrets().items() if value in text), None)


def _is_path(value: str) -> bool:
    try:
        return os.path.isabs(value) and os.path.exists(value)
    except ValueError:  # a null byte
        return False
