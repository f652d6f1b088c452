"""Reading files of others within limits: a small compressed file may unpack to more than a machine's memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from harness.core.errors import UserError

LONGEST_ROW = 2**24  # bytes of a line or a row: 16 MiB, some three thousand pages
LARGEST_FILE = 2**30  # bytes of a file that is parsed as a whole
# Text packs to a quarter or a tenth. What unpacks to more than 64 MiB and 200 times its size was made to fill memory.
FREE, RATIO = 2**26, 200

# What reading a file raises: OSError for one that is not there or is no gzip, EOFError for a gzip that is cut off, and
# zlib.error for one that is damaged.
UNREADABLE = (OSError, EOFError, zlib.error)


def most_unpacked(path: Path) -> int:
    """Return how many bytes a compressed file may unpack to."""
    return max(FREE, RATIO * path.stat().st_size)


def open_bounded(path: Path) -> BinaryIO:
    """Open a file for reading, gzipped (by its first bytes or its name) or not.

    Raises `UserError` for one that unpacks to more than `most_unpacked`, and one of `UNREADABLE` for a damaged one.
    """
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b" or path.suffix == ".gz"
    if not packed:
        return open(path, "rb")
    _check_unpacked(path)  # unpacking is fast; parsing as much before it is noticed would take minutes
    return cast(BinaryIO, gzip.open(path, "rb"))


def bounded_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file; raises `UserError` for one longer than `LONGEST_ROW`."""
    with open_bounded(path) as file:
        number = 1
        while line := file.readline(LONGEST_ROW + 1):
            if len(line) > LONGEST_ROW:
                raise UserError(f"{path}:{number}: the line is longer than {_mebibytes(LONGEST_ROW)}")
            yield line
            number += 1


def bounded_content(path: Path) -> bytes:
    """Return the content of a file; raises `UserError` if it is larger than `LARGEST_FILE`."""
    with open_bounded(path) as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise UserError(f"{path}: larger than {_mebibytes(LARGEST_FILE)}, and it is read at once; write JSON lines")
    return content


def check_row(size: int, where: str) -> None:
    """Raise `UserError` for a row of more than `LONGEST_ROW` bytes or characters."""
    if size > LONGEST_ROW:
        raise UserError(f"{where}: the row is longer than {_mebibytes(LONGEST_ROW)}")


def _check_unpacked(path: Path) -> None:
    most, unpacked = most_unpacked(path), 0
    with gzip.open(path, "rb") as file:
        while chunk := file.read(2**20):
            unpacked += len(chunk)
            if unpacked > most:
                raise UserError(
                    f"{path} unpacks to more than {_mebibytes(most)}, over {RATIO} times its size; unpack it yourself "
                    "if it is meant to"
                )


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
