"""What no setting may hold, whatever its key: checked where settings enter, in files, overrides and judge sections."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from omegaconf import Container, OmegaConf

from harness.core.errors import UserError, one_line
from harness.core.secrets import secret_in

MISSING = "???"  # OmegaConf's word for a value that is still to be given
LONGEST_INTEGER = 10_000  # bits; Python refuses to write a longer one as decimal digits
OF_THE_ENVIRONMENT = "key_env"  # the one key that may be taken from the environment: it names a variable


def screened(values: Any, where: str) -> Any:
    """Return settings as plain values, with `~` at the start of a string replaced by the home folder.

    Raises `UserError` for a value that is missing (`???`), is taken from the environment by a resolver, holds a secret
    of the environment (both would be written down beside the results), a null byte, or an integer of thousands of
    digits.
    """
    plain = OmegaConf.to_container(values, resolve=False) if isinstance(values, Container) else values
    return _screened(plain, "", where)


def _screened(value: Any, path: str, where: str) -> Any:
    if isinstance(value, Mapping):
        for key in value:
            if isinstance(key, str) and (problem := _problem(key, "")):
                raise UserError(f"{where}: a key {'of ' + path if path else 'at the top'} {problem}")
        return {key: _screened(inner, f"{path}.{key}" if path else str(key), where) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_screened(inner, f"{path}[{place}]", where) for place, inner in enumerate(value)]
    if isinstance(value, int) and value.bit_length() > LONGEST_INTEGER:
        raise UserError(f"{where}: {path} is an integer of thousands of digits")
    if not isinstance(value, str):
        return value
    if problem := _problem(value, path.rpartition(".")[-1]):
        raise UserError(f"{where}: {path} {problem}")
    return os.path.expanduser(value) if value.startswith("~") else value


def _problem(text: str, key: str) -> str:
    """Return what is wrong with a string, as text that follows its place in a message; "" if nothing is."""
    if text == MISSING:
        return f"is {MISSING}, which stands for a value that is missing; give one, or leave the key out"
    if "\0" in text:
        return "holds a null byte"
    if name := secret_in(text):
        return f"holds the value of ${name}, which would be written down; only a judge's key_env may name the variable"
    if key != OF_THE_ENVIRONMENT and _resolves(text):
        return (
            f"is {one_line(text):.60}: ${{...}} may refer to another key of the file (${{train.lr}}), not to the "
            "environment or to another resolver, because every setting is written down beside the results"
        )
    return ""


def _resolves(text: str) -> bool:
    """Whether an interpolation in a text calls a resolver, as `${oc.env:HOME}` does, and refers not only to keys."""
    depth, place = 0, 0
    while place < len(text):
        if text.startswith("${", place):
            depth, place = depth + 1, place + 1
        elif depth and text[place] == "}":
            depth -= 1
        elif depth and text[place] == ":":
            return True
        place += 1
    return False
