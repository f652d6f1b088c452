"""The types of hyper-parameters with bounds, for the signatures of losses: `beta: Positive = 0.1`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Bounds:
    """The ends of a number's range, open (`above`, `below`) or closed (`at_least`, `at_most`); None: there is none.

    A signature has them in its annotation: `margin: Annotated[float, Bounds(at_least=0, below=10)] = 1.0`.
    """

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def __str__(self) -> str:
        ends = {name.replace("_", " "): limit for name, limit in vars(self).items() if limit is not None}
        return " and ".join(f"{name} {limit:g}" for name, limit in ends.items())


UNBOUNDED = Bounds()
Positive = Annotated[float, Bounds(above=0)]
NonNegative = Annotated[float, Bounds(at_least=0)]
Share = Annotated[float, Bounds(at_least=0, at_most=1)]
OpenShare = Annotated[float, Bounds(above=0, below=1)]
ErrorRate = Annotated[float, Bounds(at_least=0, below=0.5)]  # of labels: at one half they say nothing
