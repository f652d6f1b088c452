"""What the backbone sees of a loss, and the losses that between them show it everything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from losses import Loss, get_loss

# What is declared for people, or belongs to the formula. All else decides a loss's path through data and training.
OF_THE_FORMULA = {
    "name",
    "function",
    "paper",
    "start_value",
    "hyperparameters",
    "sign_exceptions",
    "modified_by",
}
SIGNATURE = [field.name for field in fields(Loss) if field.name not in OF_THE_FORMULA]


def signature(name: str) -> tuple:
    """Return what the backbone sees of a loss: its kind of data, needs, reduction, and whether it couples examples."""
    loss = get_loss(name)
    return tuple(getattr(loss, field) for field in SIGNATURE)


def one_for_each_signature(names: Iterable[str]) -> tuple[str, ...]:
    """Return the first loss of each distinct signature, in order."""
    first: dict[tuple, str] = {}
    for name in names:
        first.setdefault(signature(name), name)
    return tuple(first.values())
