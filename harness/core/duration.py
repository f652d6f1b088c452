"""Durations: in words, and as an experiment file gives them."""

from __future__ import annotations

import re
from dataclasses import dataclass

SECONDS = {"s": 1, "min": 60, "h": 3600}


def duration_text(seconds: float) -> str:
    """Return a duration as a person would write it: 8.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


@dataclass(frozen=True)
class Interval:
    """How often something is done: every so many `steps` (0: never), or after so many `seconds`. One of them is None."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> Interval:
        """Read "50" (steps), "90s", "5min" or "1h"; raise `ValueError` for anything else."""
        match = re.fullmatch(r"(\d+)\s*(s|min|h)?", text.strip())
        if match is None:
            raise ValueError(
                f"give a number of steps ('50'; '0' for never) or a time ('90s', '5min', '1h'), got {text!r}"
            )
        number, unit = match.groups()
        return cls(seconds=int(number) * SECONDS[unit]) if unit else cls(steps=int(number))
