"""The most memory that a process holds, beyond what it holds at the start."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch

FORGET = Path("/proc/self/clear_refs")  # Linux: writing "5" resets the peak of the resident set
STATUS = Path("/proc/self/status")  # has that peak; getrusage's is at least that of the parent process


class Peak:
    """The peak memory since the object was made, of this process or of a GPU.

    Outside Linux the process's peak cannot be reset, so only what exceeds an earlier peak is seen.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif FORGET.exists():
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # freed memory that is kept for reuse would hide later allocations
            FORGET.write_text("5")
        self.before = self._now()

    def read(self) -> float:
        """Return the peak so far in MiB, less what was held at the beginning."""
        return self._now() - self.before

    def _now(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        if STATUS.exists():
            (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
            return int(line.split()[1]) / 2**10  # "VmHWM: 1234 kB"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
        return peak / (2**20 if sys.platform == "darwin" else 2**10)
