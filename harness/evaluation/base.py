"""The vocabulary of judging: comparisons, judgements, and the registry that names the judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

from harness.core.prompt import Prompt
from harness.core.records import Agreement, Judgement
from harness.core.store import Store
from harness.tasks.base import Preference
from losses.registry import Registry, origin_of


@dataclass(frozen=True)
class Comparison:
    """A policy's response beside the baseline's, to one prompt."""

    id: str
    prompt: Prompt
    response: str
    baseline: str


@dataclass(frozen=True)
class Forecast:
    """What judging will take: calls to an endpoint in all and of them already answered; tokens and USD of the others.

    `prompt_tokens` are an estimate, a quarter of the bytes. `completion_tokens` are the most that there may be (None:
    the answers have no limit), and `usd` follows from both (None: no known price).
    """

    calls: int = 0
    kept: int = 0
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    usd: float | None = 0.0

    def __add__(self, other: Forecast) -> Forecast:
        def both(a, b):
            return None if a is None or b is None else a + b

        return Forecast(*(both(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))


class Judge(Protocol):
    """What a judge factory returns. `id` names judge, version and template, and stands beside every result.

    One whose scores rest on a table of the prompts' difficulties has also `difficulty(comparisons)`, which returns that
    table as JSON holds it, or None where it does not cover these; it is kept beside the judgements.
    """

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
    were paid for. `account` names whose spending counts against a budget: the experiment and, in a panel, the judge.
    """

    template: str
    fit: Sequence[Preference]
    held_out: Sequence[Preference]
    labels: str
    embed: Callable
    encoder: str
    store: Store
    cache: Path
    account: str


@dataclass(frozen=True)
class JudgeKind:
    """A registered judge: its options (a dataclass), a cheap check of them, and the factory.

    `transport` names the options that change how an answer is had, and not which. `ready` checks what the environment
    must hold to judge (a key), which planning does without; `forecast` says what judging comparisons will take, and is
    None for a judge that runs here.
    """

    name: str
    options: type
    check: Callable
    make: Callable
    transport: tuple[str, ...] = ()
    ready: Callable = lambda options: None
    forecast: Callable | None = None

    def identity(self, options: object) -> dict:
        """Return the options that determine verdicts."""
        return {key: value for key, value in asdict(options).items() if key not in self.transport}


JUDGES: Registry[JudgeKind] = Registry("judge")


def register_judge(
    name: str,
    *,
    options: type,
    check: Callable = lambda options: None,
    transport: tuple[str, ...] = (),
    ready: Callable = lambda options: None,
    forecast: Callable | None = None,
) -> Callable:
    """Register a factory `make(options, context) -> Judge`.

    `options` is a dataclass of the judge's settings in the experiment file. `check(options)` runs before anything
    expensive starts, `ready(options)` before a run, and both raise `UserError` for what would fail later (a setting; a
    missing key). `transport` names the options that change no verdict (a timeout, say). A judge behind an endpoint has
    `forecast(options, context, comparisons) -> Forecast`, which makes no call and needs no key.
    """

    def decorate(make: Callable) -> Callable:
        JUDGES.add(name, JudgeKind(name, options, check, make, transport, ready, forecast), origin_of(make))
        return make

    return decorate
