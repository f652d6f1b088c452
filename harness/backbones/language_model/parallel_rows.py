"""Rows tokenised one after the other or, where there are many, by several processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import TypeVar

from joblib import Parallel, cpu_count, delayed

from harness.backbones.language_model.tokenise import Dropped, TokenRow
from harness.tasks.base import Preference, Question

R = TypeVar("R", Preference, Question)
Outcome = TokenRow | Dropped
ROWS_PER_WORKER = 5000  # a process takes about as long to start as for this many rows
CHUNK = 200  # rows that a process is given at once
IDLE = 5  # seconds after which a process without work ends

_held: dict[str, Callable] = {}  # what a worker's process was given once, as it is large


def tokenised(tokenise: Callable[[R], TokenRow], rows: Sequence[R], limit: int | None = None) -> Iterator[Outcome]:
    """Yield what `tokenise` returns of each row, or the `Dropped` that it raises, in the order of the rows.

    Rows are read as they are asked for, or a little ahead, so that memory does not grow with their number. `limit` is
    how many the caller expects to need.
    """
    wanted = len(rows) if limit is None else min(limit, len(rows))
    workers = min(cpu_count(), wanted // ROWS_PER_WORKER)
    if workers < 2:
        yield from map(partial(_outcome, tokenise), rows)
        return
    chunks = (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))
    parallel = Parallel(
        n_jobs=workers,
        return_as="generator",
        initializer=_hold,
        initargs=(tokenise,),
        idle_worker_timeout=IDLE,
    )
    outcomes = parallel(delayed(_outcomes)(chunk) for chunk in chunks)
    try:
        yield from chain.from_iterable(outcomes)
    finally:  # the caller may need no more
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* executed .* but not used", category=UserWarning)
            outcomes.close()


def _outcome(tokenise: Callable[[R], TokenRow], row: R) -> Outcome:
    try:
        return tokenise(row)
    except Dropped as reason:
        return reason


def _hold(tokenise: Callable) -> None:
    _held["tokenise"] = tokenise


def _outcomes(rows: Sequence[R]) -> list[Outcome]:
    return [_outcome(_held["tokenise"], row) for row in rows]
