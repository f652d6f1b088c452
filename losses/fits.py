"""What a modifier may fit: functions of a loss that return why the modifier does not fit it, or "" where it does.

The first line of the docstring completes "fits ...". What a loss reads is found by running it on random log-probs, so
that a user's loss needs no declaration that could be wrong.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from losses.batch import Part, PreferenceBatch, Side
from losses.probe import probe
from losses.spec import Loss


def pairs(loss: Loss) -> str:
    """Paired losses."""
    return "" if loss.data == "paired" else f"is for paired losses, and {loss.name} is {loss.data}"


def single_pairs(loss: Loss) -> str:
    """Paired losses each of whose rows belongs to one pair."""
    if loss.data == "paired" and loss.couples_examples:
        return f"is for pairs one by one, and the rows of {loss.name} belong to several"
    return pairs(loss)


def labels(loss: Loss) -> str:
    """Losses of a logit that says which response is better, which they mark with `batch.labelled(logit)`."""
    batch = probe(loss)
    if torch.equal(_rows(loss, batch), _rows(loss, replace(batch, flipped=True))):
        return f"reverses a logit for a flipped label, and {loss.name} marks none with batch.labelled"
    return ""


def margins(loss: Loss) -> str:
    """Losses that read log-ratios of responses as differences alone.

    The derivative f' of a divergence, which replaces the log-ratio, is defined up to a constant, since f(u) + c (u - 1)
    is the same divergence. The constant cancels in a difference; anything else would depend on it.
    """
    if "reference" not in loss.needs:
        return f"acts on log-ratios, and {loss.name} has no reference"
    if loss.reduction == "token":
        return f"acts on log-ratios of responses, and {loss.name} takes tokens"
    batch, asked = probe(loss), []

    def noted(logratios: Tensor) -> Tensor:
        asked.append(logratios)
        return logratios

    def moved(part: Part) -> Part:
        by = part.lengths if isinstance(part, Side) and loss.reduction == "mean" else torch.ones_like(part.policy)
        return part if part.reference is None else replace(part, reference=part.reference + by)

    rows = _rows(loss, batch.changed(lambda parts: [replace(part, link=noted) for part in parts]))
    if not asked:
        return f"acts on log-ratios, and {loss.name} is no function of them, or they have been replaced"
    if not torch.allclose(rows, _rows(loss, batch.changed(lambda parts: map(moved, parts)))):
        return f"knows log-ratios up to a constant, and {loss.name} reads them one by one"
    return ""


def _rows(loss: Loss, batch: PreferenceBatch) -> Tensor:
    return loss.function(batch, **loss.settings())
