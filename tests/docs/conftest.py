"""The commands of the pages, run in this process: starting another one costs seconds that show nothing more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
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


@pytest.fixture
def on_the_path(monkeypatch) -> Iterator[Callable[[Path], None]]:
    """Return a function that adds a folder of installed packages; what was imported from it is forgotten afterwards."""
    folders = []

    def on_the_path(folder: Path) -> None:
        folders.append(folder)
        monkeypatch.syspath_prepend(str(folder))

    yield on_the_path
    for name, module in list(sys.modules.items()):
        if any(Path(getattr(module, "__file__", None) or "/").is_relative_to(folder) for folder in folders):
            del sys.modules[name]
