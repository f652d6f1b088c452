"""The one error class for problems that the user can fix, and one-line text for its message."""

from __future__ import annotations


class UserError(Exception):
    """A problem in the experiment, the data or the environment that the user has to fix.

    The message is one line that says what is wrong, where, and what to do; the command line prints it without a
    traceback and exits with status 2.
    """


def one_line(text: object) -> str:
    """Return text without line breaks and control characters, safe for a message, a table cell or a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
