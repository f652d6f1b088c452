"""The vocabulary of judging: comparisons, judgements, and the registry that names the judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from harness.store import Store
from harness.tasks.base import Preference, Prompt
from losses.registry import Registry, origin_of

COUNTED = ("ok", "tie")  # the statuses that carry a preference


@dataclass(frozen=True)
class Comparison:
    """A policy's response beside the baseline's, to one prompt."""

    id: str
    prompt: Prompt
    response: str
    baseline: str


@dataclass(frozen=True)
class Judgement:
    """A judge's answer to one comparison.

    `status` is "ok", "tie", "refused", "unparsable" or "failed"; only the first two carry a `preference`: 1 for
    the policy's response, 0 for the baseline, 0.5 for a tie. `flipped`: the two orders gave opposite verdicts
    (None where only one verdict was had, or where the judge does not depend on the order). `detail` keeps the
    reason of a failure.
    """

    id: str
    status: str
    preference: float | None
    flipped: bool | None = None
    detail: str = ""


@dataclass(frozen=True)
class Agreement:
    """How often a judge agreed with labels on pairs it had not seen: accuracy with a 95 % interval."""

    accuracy: float
    low: float
    high: float
    n: int
    labels: str


class Judge(Protocol):
    """What a judge factory returns. `id` names judge, version and template, and stands beside every result."""

    id: str
    agreement: Agreement | None

    def judge(self, comparisons: Sequence[Comparison], progress: Callable[[int], None]) -> list[Judgement]:
        """Return one judgement per comparison, in order; `progress(k)` is called when k more are done."""


@dataclass(frozen=True)
class JudgeContext:
    """What a judge may use besides its options.

    `template` names the task's template; `fit` are pairs to learn from, `held_out` pairs to be measured on, whose
    labels come from `labels`; `embed` turns texts into an (n, d) float32 array of unit vectors, and `encoder` is
    the content hash of the model behind it; `store` keeps artifacts, and `cache` is a folder for judgements that
    were paid for.
    """

    template: str
    fit: Sequence[Preference]
    held_out: Sequence[Preference]
    labels: str
    embed: Callable
    encoder: str
    store: Store
    cache: Path


@dataclass(frozen=True)
class JudgeKind:
    """A registered judge: its options (a dataclass), a cheap check of them, and the factory.

    `transport` names the options that change how an answer is had, and not which.
    """

    name: str
    options: type
    check: Callable
    make: Callable
    transport: tuple[str, ...] = ()

    def identity(self, options: object) -> dict:
        """Return the options that determine verdicts."""
        return {key: value for key, value in asdict(options).items() if key not in self.transport}


JUDGES: Registry[JudgeKind] = Registry("judge")


def register_judge(
    name: str, *, options: type, check: Callable = lambda options: None, transport: tuple[str, ...] = ()
) -> Callable:
    """Register a factory `make(options, context) -> Judge`.

    `options` is a dataclass of the judge's settings in the experiment file; `check(options)` runs before anything
    expensive starts and raises `UserError` for what would fail later (a missing key, say). `transport` names the
    options that change no verdict (a timeout, say).
    """

    def decorate(make: Callable) -> Callable:
        JUDGES.add(name, JudgeKind(name, options, check, make, transport), origin_of(make))
        return make

    return decorate
