"""The values that a hyper-parameter may have, stated in its annotation: `beta: Positive = 0.1`."""

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Bounds:
    """Bounds of a number, each None where there is none. For an annotation: `Annotated[float, Bounds(above=0)]`."""

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
        """Return the bounds in words, for example `above 0 and at most 1`."""
        stated = [f"{name.replace('_', ' ')} {limit:g}" for name, limit in vars(self).items() if limit is not None]
        return " and ".join(stated)


UNBOUNDED = Bounds()
Positive = Annotated[float, Bounds(above=0)]
NonNegative = Annotated[float, Bounds(at_least=0)]
Share = Annotated[float, Bounds(at_least=0, at_most=1)]
Inside = Annotated[float, Bounds(above=0, below=1)]  # neither 0 nor 1
FlipRate = Annotated[float, Bounds(at_least=0, below=0.5)]  # of labels
