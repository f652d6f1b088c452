"""The registered losses, as a table and as data."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from losses import get_loss, list_losses
from losses.spec import LOSSES


def losses_as_dicts() -> list[dict]:
    """Return every registered loss as a JSON-serialisable mapping."""
    return [
        {
            "name": loss.name,
            "summary": loss.summary,
            "paper": loss.paper,
            "data": loss.data,
            "needs": sorted(loss.needs),
            "reduction": loss.reduction,
            "couples_examples": loss.couples_examples,
            "start_value": loss.start(loss.settings()),
            "hyperparameters": {
                p.name: {"type": p.type.__name__, "default": p.default, "grid": list(p.grid)}
                for p in loss.hyperparameters.values()
            },
            "defined_at": LOSSES.origin(loss.name),
        }
        for loss in map(get_loss, list_losses())
    ]


def losses_table() -> Table:
    """Return the registered losses as a table for the terminal."""
    table = Table(title="registered losses", title_justify="left")
    for heading in ("name", "paper", "data", "needs", "reduction", "hyper-parameters: default [grid]"):
        table.add_column(heading, overflow="fold")
    for loss in losses_as_dicts():
        hyperparameters = "\n".join(
            f"{name}: {p['default']}" + (f" [{', '.join(map(str, p['grid']))}]" if p["grid"] else "")
            for name, p in loss["hyperparameters"].items()
        )
        cells = (
            loss["name"],
            loss["paper"],
            loss["data"],
            ", ".join(loss["needs"]),
            loss["reduction"],
            hyperparameters,
        )
        table.add_row(*map(escape, cells))
    return table
