"""The one place that prints: what reaches the terminal is free of control characters and of secrets.

Names, data, answers of endpoints and errors of other people's code can hold anything: escape sequences that rewrite the
screen, bidirectional overrides that reorder it, line breaks that forge a line of the harness's own. None has an effect.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from harness.core.errors import one_line
from harness.core.secrets import masked, secrets


def visible(text: object) -> str:
    """Return untrusted text with its control characters spelled out; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in str(text))


class Terminal(Console):
    """A rich console that shows text as it is, without markup, and cleans all of it, in tables too.

    `piped_width` is the least width, in characters, where the output is not a terminal.
    """

    def __init__(self, *, piped_width: int = 0, **options):
        super().__init__(markup=False, highlight=False, emoji=False, **options)
        if not self.is_terminal:
            self.width = max(self.width, piped_width)

    def on_broken_pipe(self) -> None:
        """Raise `BrokenPipeError`, which the command line knows; rich would raise SystemExit."""
        raise BrokenPipeError

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of what is printed, cleaned. Rich's own control codes are segments of another kind."""
        known = secrets()
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(masked(segment.text, known)))

    def render_str(self, text: str, **options) -> Text:
        """Return a string as text, cleaned before its width is measured: cells of tables, titles, notes."""
        return super().render_str(visible(masked(text)), **options)

    def say(self, text: str, style: str = "") -> None:
        """Print one line, however long: line breaks in the text are spelled out."""
        self.print(Text(_on_one_line(masked(text)), style=style), soft_wrap=True)

    def lines(self, text: str) -> None:
        """Print text of several lines as it is, such as JSON."""
        self.print(Text(masked(text)), soft_wrap=True)


def complain(text: str) -> None:
    """Print one line of an error or a warning to stderr."""
    _to_stderr(one_line(masked(text)))


def warning_line(message: Warning | str, category: type, filename: str, lineno: int, line: str | None = None) -> str:
    """Return a warning as Python's `warnings.formatwarning` does, on one line."""
    return f"warning: {one_line(masked(str(message)))}\n"


def show_traceback(error: BaseException) -> None:
    """Print the traceback of an error that nobody expected to stderr, its message on one line."""
    for part in traceback.TracebackException.from_exception(error).format():
        in_stack = part.startswith((" ", "Traceback", "\nDuring", "\nThe above"))
        _to_stderr(visible(masked(part.rstrip("\n"))) if in_stack else one_line(masked(part)))


def _on_one_line(text: str) -> str:
    return visible(text).replace("\n", "\\n")


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)
