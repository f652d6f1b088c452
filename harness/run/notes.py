"""What a user is told of the texts that policies train on: what was cut, respelt, dropped, or rendered otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

CHANGES = ("truncated", "dropped", "respelt", "left out", "changed")


def data_notes(counts: Mapping[str, int]) -> str:
    """Return the counts of changed and dropped rows as one text, "" if there are none.

    Those of dev prompts are left out, because not every run uses them.
    """
    told = {what: n for what, n in counts.items() if n and any(word in what for word in CHANGES)}
    return "; ".join(f"{what}: {n:,}" for what, n in told.items() if not what.startswith("dev prompts"))


def template_lines(notes: Sequence[str]) -> list[str]:
    """Return the renderer's notes on the chat template as lines."""
    return [f"  chat    template: {note}" for note in notes]
