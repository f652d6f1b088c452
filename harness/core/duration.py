"""Durations: as readable text, and as written in an experiment file."""

from __future__ import annotations

import re
from dataclasses import dataclass

SECONDS = {"s": 1, "min": 60, "h": 3600}


def duration_text(seconds: float) -> str:
    """Return a duration as readable text: 8.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


@dataclass(frozen=True)
class Every:
    """How often something happens: every `steps` steps (0: never) or every `seconds` seconds. The other is None."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> Every:
        """Read "50" (steps), "90s", "5min" or "1h"; raise `ValueError` for anything else."""
        match = re.fullmatch(r"(\d{1,9})\s*(s|min|h)?", text.strip())
        if match is None:
            raise ValueError(
                f"give a number of steps ('50'; '0' for never) or a time ('90s', '5min', '1h'), got {text!r}"
            )
        number, unit = match.groups()
        return cls(seconds=int(number) * SECONDS[unit]) if unit else cls(steps=int(number))
