"""A hub on this machine for the processes of a test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVER = Path(__file__).parent / "tasks" / "hub_server.py"


@contextmanager
def served(folder: Path) -> Iterator[dict[str, str]]:
    """Serve the repositories `folder/hub/owner/name`; give the environment of a process that uses this hub.

    What it downloads goes into `folder/cache`. The address of a hub is read once in a process.
    """
    with subprocess.Popen([sys.executable, SERVER, folder / "hub"], stdout=subprocess.PIPE, text=True) as server:
        try:
            environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
            environment |= {"HF_ENDPOINT": server.stdout.readline().strip(), "HF_HOME": str(folder / "cache")}
            yield {**environment, "HF_HUB_DISABLE_XET": "1"}
        finally:
            server.kill()
