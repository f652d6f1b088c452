"""The one error class for problems that the user can fix, and one-line text for its message."""

from __future__ import annotations

import traceback
from collections.abc import Collection
from pathlib import Path


class UserError(Exception):
    """A problem in the experiment, the data or the environment that the user has to fix.

    The message is one line that says what is wrong, where, and what to do; the command line prints it without a
    traceback and exits with status 2.
    """


def one_line(text: object) -> str:
    """Return text without line breaks and control characters, safe for a message, a table cell or a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its type's name if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def last_line(error: BaseException, modules: Collection[str]) -> str:
    """Return the last line of these modules that took part in an error, as `file:line`; "" if none did."""
    lines = [
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__") in modules
    ]
    return lines[-1] if lines else ""


def in_user_code(error: BaseException, module: str) -> str:
    """Return an error of the user's code on one line, with the last line of `module` that took part in it."""
    where = last_line(error, {module})
    message: object = error
    if isinstance(error, SyntaxError) and error.lineno:  # its own message ends with a file's name without a folder
        message = error.msg
        if error.filename and Path(error.filename).is_file():  # otherwise the text of an `exec`
            where = f"{error.filename}:{error.lineno}"
    return one_line(f"{type(error).__name__}: {message}" + (f" ({where})" if where else ""))
