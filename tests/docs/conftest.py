"""The commands of the pages, run in this process: starting another one costs seconds that show nothing more."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli.main import main


@pytest.fixture
def command(monkeypatch, capsys) -> Callable[..., subprocess.CompletedProcess]:
    """Return a function that runs a command in a folder and returns its status and what it printed."""

    def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
        monkeypatch.chdir(cwd)
        capsys.readouterr()
        status = main(list(arguments))
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, status, printed.out, printed.err)

    return command
