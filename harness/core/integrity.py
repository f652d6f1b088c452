"""Whether an artifact's files are what was written: by size and times first, and by hash if these have changed.

The hash, size and times of files that were undamaged are kept beside the artifact in `.NAME.checked`. A copied store
has other times, so each of its files is hashed once. A store that cannot be written is hashed on every use.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from harness.core.hashing import hash_file


def damage_of(folder: Path, files: Mapping[str, str]) -> str:
    """Return what is wrong with an artifact's files, in words; "" if they are what was written.

    `files` maps names of files in `folder` to the sha256 that they were written with.
    """
    known = _checked(folder)
    now: dict[str, list] = {}
    for name, digest in files.items():
        now[name], wrong = _examined(folder / name, digest, known.get(name))
        if wrong:
            return f"{name} {wrong}"
    if any(known.get(name) != stamp for name, stamp in now.items()):
        _remember(folder, {**known, **now})
    return ""


def damages(folder: Path, files: Mapping[str, str], sizes: Mapping[str, int]) -> Iterator[str]:
    """Yield everything that is wrong with an artifact's files, in words. Each is hashed, whatever is remembered of it.

    `files` maps names to sha256, `sizes` to bytes; an artifact of an earlier version has no sizes. Afterwards, the
    files without damage are remembered, and no others.
    """
    undamaged: dict[str, list] = {}
    for name, digest in files.items():
        if wrong := wrong_size(folder, {name: sizes[name]} if name in sizes else {}):
            yield wrong
            continue
        now, wrong = _examined(folder / name, digest)
        if wrong:
            yield f"{name} {wrong}"
        else:
            undamaged[name] = now
    if undamaged != _checked(folder):
        _remember(folder, undamaged)


def remember_written(folder: Path, files: Mapping[str, str]) -> None:
    """Note that an artifact's files have just been written and hashed, so that they need not be hashed again."""
    _remember(folder, {name: [digest, *_stamp(folder / name)] for name, digest in files.items()})


def wrong_size(folder: Path, sizes: Mapping[str, int]) -> str:
    """Return which file is missing or has another size in bytes than was written, in words; "" if none. Reads none."""
    for name, size in sizes.items():
        try:
            now = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if now != size:
            return f"{name} has {now:,} bytes and was written with {size:,}"
    return ""


def _examined(file: Path, digest: str, known: list | None = None) -> tuple[list, str]:
    """Return what is to be remembered of a file, and what is wrong with it, in words that follow its name.

    It is hashed unless its size and times are those that are `known`.
    """
    try:
        now = [digest, *_stamp(file)]
        return now, "" if now == known or hash_file(file) == digest else "is not what was written"
    except FileNotFoundError:
        return [], "is missing"
    except OSError as error:
        return [], f"cannot be read ({error.strerror or error})"


def _stamp(path: Path) -> tuple[int, int, int]:
    """Return size and times. The time of the last change of the inode cannot be set back, unlike that of the data."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a file")
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.checked")


def _checked(folder: Path) -> dict:
    """Return what was remembered; empty if there is nothing or if it is damaged."""
    try:
        value = json.loads(_file(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _remember(folder: Path, checked: Mapping[str, list]) -> None:
    with suppress(OSError):  # in a store that cannot be written, the files are hashed again next time
        _file(folder).write_text(json.dumps(checked), encoding="utf-8")
