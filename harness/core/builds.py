"""Whether an artifact is being built right now, by any process of this machine or one that shares its file locks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from harness.core.store import partial_folder


@dataclass(frozen=True)
class Build:
    """A build that has begun and not ended.

    `running`: a process holds its lock; else it was interrupted. `seconds` since it began, `idle` since it last wrote
    something, both by the files' times; `step` is that of its newest checkpoint, None where there is none.
    """

    running: bool
    seconds: float
    idle: float
    step: int | None


def find_build(path: Path) -> Build | None:
    """Return the build of the artifact at `path`; None where nothing of it has begun, or where it has ended.

    What it looks at are the lock and the folders of `harness.core.store.build_artifact`.
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
    """Whether a process holds a lock. A lock that this process may not open is taken to be free."""
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
    """Return when a folder and all in it were last changed, without what is not there or vanishes meanwhile."""
    times = []
    for path in (folder, *folder.rglob("*")):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return times
