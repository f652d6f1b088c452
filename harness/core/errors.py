"""The one kind of error that is the user's to mend, and text of one line for its message."""

from __future__ import annotations


class UserError(Exception):
    """Something in the experiment, the data or the environment must change before the harness can work.

    The message is one line that says what is wrong, where, and what to do; the command line prints it without a
    traceback and exits with status 2.
    """


def one_line(text: object) -> str:
    """Return text without line breaks and control characters, fit for a message, a cell of a table or a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
