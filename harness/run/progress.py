"""The progress that a run shows: a live display in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from harness.core.duration import duration_text
from harness.core.errors import one_line
from harness.core.terminal import Terminal
from harness.experiment.draft import Draft
from harness.experiment.plan import Plan, make_plan

NOTEWORTHY = 1.0  # seconds


class Display:
    """Progress of cells and stages: live bars in a terminal, elsewhere one line when a stage ends."""

    def __init__(self, console: Terminal, cells: int):
        self.console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._total = cells
        self._done = 0
        self._cells = self._bars.add_task("cells", total=cells)
        self._stage_bar: int | None = None

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def line(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.say(text)

    def cell_done(self) -> None:
        """Count a cell as finished."""
        self._done += 1
        self._bars.update(self._cells, completed=self._done)

    @contextmanager
    def stage(self, label: str, noteworthy: float = NOTEWORTHY) -> Iterator[Callable[[int, int], None]]:
        """Show a stage while it runs; yields `update(done, total)`.

        It leaves a line if it reported progress or took more than `noteworthy` seconds.
        """
        bar = self._bars.add_task(one_line(label), total=None)
        started = time.monotonic()
        worked = False

        def update(done: int, total: int) -> None:
            nonlocal worked
            worked = True
            self._bars.update(bar, completed=done, total=total)

        try:
            yield update
        finally:
            self._bars.remove_task(bar)
        seconds = time.monotonic() - started
        if worked or seconds > noteworthy:
            self.line(f"[{self._done + 1:>3}/{self._total}] {label}: {duration_text(seconds)}")


def plan_with_progress(draft: Draft, model: Path, console: Terminal) -> Plan:
    """Return `make_plan`'s plan, with a bar while large data are tokenised."""
    with Display(console, 1) as display, display.stage("planning", math.inf) as progress:
        return make_plan(draft, model, progress)
