"""Whether an artifact is being built now, by a process on this machine or on one that shares its file locks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from harness.core.store import partial_folder


@dataclass(frozen=True)
class Build:
    """An unfinished build.

    - `running`: whether a process holds its lock; if not, the build was interrupted.
    - `seconds` since the build started and `idle` seconds since its last write, both from file modification times.
    - `step`: the step of the newest checkpoint, or None without a checkpoint.
    """

    running: bool
    seconds: float
    idle: float
    step: int | None


def find_build(path: Path) -> Build | None:
    """Return the unfinished build of the artifact at `path`, or None if no build has started or the last one finished.

    Reads the lock and the folders that `harness.core.store.build_artifact` leaves, and changes nothing.
    """
    path = Path(path)
    running = _locked(path.with_name(f".{path.name}.lock"))
    partial = partial_folder(path)
    built_in = [time_of for folder in path.parent.glob(f".{path.name}.tmp-*") for time_of in _times(folder)]
    if not (running or built_in or partial.is_dir()):
        return None
    now = time.time()
    steps = [int(folder.name.removeprefix("step-")) for folder in partial.glob("step-*")]
    begun, changed = min(built_in, default=now), max([*built_in, *_times(partial)], default=now)
    return Build(running, max(0.0, now - begun), max(0.0, now - changed), max(steps, default=None))


def _locked(lock: Path) -> bool:
    """Return whether a process holds the lock. A lock file that this process may not open counts as free."""
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def _times(folder: Path) -> list[float]:
    """Return the modification times of a folder and everything in it; files that vanish during the scan are skipped."""
    times = []
    for path in (folder, *folder.rglob("*")):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return times
