"""The types of judging (comparisons, forecasts, judges) and the registry of judges."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

from harness.core.dials import numeric, out_of_bounds
from harness.core.errors import UserError
from harness.core.prompt import Prompt
from harness.core.records import Agreement, Judgement
from harness.core.store import Store
from harness.tasks.base import Preference
from losses.registry import Registry, origin_of


@dataclass(frozen=True)
class Comparison:
    """A policy's response and the baseline's response to the same prompt."""

    id: str
    prompt: Prompt
    response: str
    baseline: str


@dataclass(frozen=True)
class Forecast:
    """The expected cost of judging: calls to an endpoint, how many are already answered (`kept`), the cost of the rest.

    `prompt_tokens` is an estimate (bytes / 4). `completion_tokens` is an upper bound (None if answers have no limit).
    `usd` follows from both (None if either the bound or the price is unknown).
    """

    calls: int = 0
    kept: int = 0
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    usd: float | None = 0.0

    def __add__(self, other: Forecast) -> Forecast:
        def both(a: float | None, b: float | None) -> float | None:
            return None if a is None or b is None else a + b

        return Forecast(*(both(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))


class Judge(Protocol):
    """The result of a judge factory. `id` names judge, version and template, and is shown with every result.

    A judge whose scores depend on a table of prompt difficulties also has `difficulty(comparisons)`, which returns
    that table as a JSON-serialisable dict, or None if it does not cover these comparisons; it is saved with the
    judgements.
    """

    id: str
    agreement: Agreement | None

    def judge(self, comparisons: Sequence[Comparison], progress: Callable[[int], None]) -> list[Judgement]:
        """Return one judgement per comparison, in order; call `progress(k)` when k more are done."""


@dataclass(frozen=True)
class JudgeContext:
    """The resources of a judge besides its options.

    - `template`: the name of the task's template.
    - `fit`: pairs to learn from; `held_out`: pairs to measure agreement on; `labels`: whose preferences these are.
    - `embed`: turns texts into an (n, d) float32 array of unit vectors; `encoder`: the content hash of its model.
    - `store`: keeps artifacts; `cache`: a folder for judgements that were paid for.
    - `account`: what spending counts against a budget for: the experiment and, in a panel, the judge.
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
    """A registered judge: its options (a dataclass of dials), a cheap check beyond their bounds, and the factory.

    `ready` checks the environment (for example, an API key), which planning does not need. `forecast` returns the
    expected cost of judging comparisons; it is None for a local judge.
    """

    name: str
    options: type
    further_check: Callable
    make: Callable
    ready: Callable = lambda options: None
    forecast: Callable | None = None

    def check(self, options: object, where: str = "judge", *, to_run: bool = False) -> None:
        """Raise `UserError` for options that are out of bounds or could not work; with `to_run`, for a missing key too.

        `where` is the section of the experiment that holds the options. A check may name an option as `judge.option`,
        as it is in an experiment with one judge; the error names it in its own section.
        """
        try:
            for problem in out_of_bounds(options, "judge."):
                raise UserError(problem)
            self.further_check(options)
            if to_run:
                self.ready(options)
        except UserError as error:
            names = "|".join(field.name for field in fields(self.options))
            message = re.sub(rf"\bjudge\.(?=(?:{names})\b)", f"{where}.", str(error))
            raise UserError(message if message.startswith(where) else f"{where}: {message}") from None

    def identity(self, options: object) -> dict:
        """Return the options that determine verdicts: the numeric ones."""
        return numeric(options)


JUDGES: Registry[JudgeKind] = Registry("judge")


def register_judge(
    name: str,
    *,
    options: type,
    check: Callable = lambda options: None,
    ready: Callable = lambda options: None,
    forecast: Callable | None = None,
) -> Callable:
    """Return a decorator that registers a factory `make(options, context) -> Judge`.

    - `options`: a dataclass of the judge's settings in the experiment file. Its fields may be dials
      (`harness.core.dials`): their bounds are checked, and those that are not numeric (a timeout) change no verdict.
    - `check(options)` runs before anything expensive starts and `ready(options)` before a run; both raise `UserError`
      for what would fail later (settings that do not fit together; a missing key).
    - `forecast(options, context, comparisons) -> Forecast`, for a judge behind an endpoint, makes no call and needs no
      key.
    """

    def decorate(make: Callable) -> Callable:
        JUDGES.add(name, JudgeKind(name, options, check, make, ready, forecast), origin_of(make))
        return make

    return decorate
