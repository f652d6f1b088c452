"""Code of others: plugins, installed packages, rewards. Whatever it does, it ends nothing but its own part."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from harness.core.errors import UserError, in_user_code, one_line
from losses import RegistryError


@contextmanager
def user_code(what: str, module: str) -> Iterator[None]:
    """Run code of others; `what` it is begins the message, and `module` is the one whose line a message names.

    Whatever it raises, sys.exit included, is raised as a `UserError` (its own are left as they are); Ctrl-C alone still
    interrupts. What it prints goes to stderr, so that a command's output, such as JSON, holds nothing else.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (UserError, KeyboardInterrupt):
        raise
    except RegistryError as error:
        raise UserError(f"{what}: {one_line(error)}") from None
    except BaseException as error:  # its own message helps most
        raise UserError(f"{what}: {in_user_code(error, module)}") from error
