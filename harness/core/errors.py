"""The one error class for problems that the user can fix, and one-line text for its message."""

from __future__ import annotations

import traceback


class UserError(Exception):
    """A problem in the experiment, the data or the environment that the user has to fix.

    The message is one line that says what is wrong, where, and what to do; the command line prints it without a
    traceback and exits with status 2.
    """


def one_line(text: object) -> str:
    """Return text without line breaks and control characters, safe for a message, a table cell or a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def raised_in(file: str, error: BaseException) -> str:
    """Return `file:line` of the last line of `file` that took part in an error; the file alone if none did."""
    line = None
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == file:
            line = number
    if isinstance(error, SyntaxError) and error.filename == file:  # the file was not executed
        line = error.lineno
    return f"{file}:{line}" if line else file
