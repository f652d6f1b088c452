"""DeepSpeed for the tests that launch with it. It lies beside the environment (see the Makefile), not in it: where it
can be imported, accelerate imports it, which takes seconds and prints.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

from tests.conftest import REPOSITORY

FOLDER = (REPOSITORY / ".venv" / "deepspeed").resolve()  # a linked one is built for once, whatever links to it


def launched_with_deepspeed(stage: int = 2) -> dict[str, str]:
    """Return what the environment of such a launch has; without DeepSpeed the test is skipped."""
    if not FOLDER.exists() and find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed: `make env-test` does it on Linux")
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")])),
        "PATH": os.pathsep.join([str(FOLDER / "bin"), os.environ["PATH"]]),  # ninja, with which it builds
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
    }
