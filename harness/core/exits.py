"""How a process ends."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn


def leave(status: int) -> NoReturn:
    """End the process with an exit status; one of several that compute together skips Python's shutdown.

    A group of processes has threads of its own. One that releases a tensor while Python shuts down aborts its process,
    and the launcher reports a finished run as failed. To destroy the group would end the threads, but not where a
    library keeps a reference to it (DeepSpeed does). Output is flushed and exit handlers are called as always.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        sys.exit(status)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
