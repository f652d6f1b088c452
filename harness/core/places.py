"""Places that a command will write: checked before its work begins, and left as they were."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from harness.core.errors import UserError

PROBE = 1 << 20  # bytes; a full disk takes an empty file


def probe(folder: Path) -> None:
    """Raise `OSError` if files cannot be written in a folder, or in the folder that it would be made in.

    Tells a read-only folder, a file or a link to nothing in its place, and a full disk.
    """
    place = Path(os.path.abspath(folder))
    while not _is_there(place):
        place = place.parent
    if place.is_symlink() and not place.exists():
        raise FileNotFoundError(errno.ENOENT, "it is a link to nothing", str(place))
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(PROBE))
            file.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(place)) from None


def check_writable(folder: Path, what: str, remedy: str) -> None:
    """Raise `UserError` for a folder that `probe` rejects; `what` names it, and `remedy` says what to do."""
    try:
        probe(folder)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        why = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else error
        raise UserError(f"{what} {folder} cannot be written ({why}); {remedy}") from None


def check_output(file: Path, what: str, remedy: str) -> None:
    """Raise `UserError` if a file cannot be written: a folder is in its place, or its folder cannot be written."""
    if file.is_dir():
        raise UserError(f"{what} {file} is a folder; {remedy}")
    if not file.parent.is_dir():
        raise UserError(f"{what} {file} cannot be written: there is no folder {file.parent}; {remedy}")
    check_writable(file.parent, f"{what} {file}: the folder", remedy)


def check_new_folder(folder: Path, what: str) -> None:
    """Raise `UserError` if a folder cannot be written, or holds something that would be overwritten."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{what} {folder}: it is not empty, and nothing is overwritten; name another folder")
    check_writable(folder, what, "name another folder")


def check_results(*folders: Path) -> None:
    """Raise `UserError` if a folder of results cannot be written."""
    for folder in folders:
        check_writable(folder, "results folder", "choose another with results=FOLDER")


def _is_there(place: Path) -> bool:
    try:
        os.lstat(place)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
