"""How a process ends: with its status, whatever the threads of a process group do at that moment."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

GROUP = """
import torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
"""
# What a thread of the group does now and then while Python shuts down, an object of a module does each time.
ABORTS = """
import atexit, os, sys
from harness.core.exits import leave
class Aborts:
    def __del__(self, abort=os.abort):
        abort()
aborts = Aborts()
atexit.register(print, "handler")
print("output", end=" ")
"""


def ended(script: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("status", [0, 3])
def test_one_of_several_processes_ends_with_its_status(status):
    result = ended(f"{GROUP}{ABORTS}leave({status})")
    assert (result.returncode, result.stdout) == (status, "output handler\n"), result.stderr
    assert ended(f"{GROUP}{ABORTS}sys.exit({status})").returncode < 0, "Python's shutdown would have been aborted"


def test_a_process_of_its_own_ends_as_python_ends_it():
    result = ended(
        "from harness.core.exits import leave\nclass Late:\n    def __del__(self, say=print):\n"
        "        say('late')\nlate = Late()\nleave(3)"
    )
    assert (result.returncode, result.stdout) == (3, "late\n")
