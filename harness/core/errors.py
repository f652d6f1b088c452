"""The one kind of error that is the user's to mend."""

from __future__ import annotations


class UserError(Exception):
    """Something in the experiment, the data or the environment must change before the harness can work.

    The message is one line that says what is wrong, where, and what to do; the command line prints it without a
    traceback and exits with status 2.
    """
