"""Outcomes of the checks of losses, and their tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

OK, FAILED, DECLARED, NOT_TESTED = "ok", "FAILED", "declared exception", "not tested"
COLOURS = {OK: "green", FAILED: "bold red", DECLARED: "yellow", NOT_TESTED: "dim"}


@dataclass(frozen=True)
class Outcome:
    """The outcome of one check of one loss; `status` is `OK`, `FAILED`, `DECLARED` or `NOT_TESTED`."""

    check: str
    status: str
    detail: str


def outcome_table(name: str, outcomes: Sequence[Outcome]) -> Table:
    """Return a table of the outcome of every check of one loss."""
    table = _table(name, "check", "result", "detail")
    for outcome in outcomes:
        table.add_row(outcome.check, _coloured(outcome), Text(outcome.detail))
    return table


def summary_table(by_loss: Mapping[str, Sequence[Outcome]]) -> Table:
    """Return a table with one row per loss; outcomes other than ok are listed if they were tested."""
    table = _table("conformance", "loss", "ok", "else", "detail")
    for name, outcomes in by_loss.items():
        others = [outcome for outcome in outcomes if outcome.status not in (OK, NOT_TESTED)]
        passed = sum(outcome.status == OK for outcome in outcomes)
        table.add_row(
            Text(name),
            f"{passed} of {len(outcomes)}",
            Text("\n").join(map(_coloured, others)),
            Text("\n".join(f"{outcome.check}: {outcome.detail}" for outcome in others)),
        )
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _coloured(outcome: Outcome) -> Text:
    return Text(outcome.status, style=COLOURS[outcome.status])
