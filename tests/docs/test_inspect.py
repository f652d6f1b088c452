"""The commands of docs/inspect.md and of the four commands' help work, on a run with the names that they use."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from harness.cli import export, show, status, verify
from harness.cli.main import main
from tests.conftest import REPOSITORY
from tests.tiny_experiment import run, write_experiment

PAGE = (REPOSITORY / "docs/inspect.md").read_text(encoding="utf-8")
SHOWN = re.compile(r"^ *python -m harness (.*)$", flags=re.MULTILINE)
COMMANDS = list(dict.fromkeys(SHOWN.findall(PAGE + status.EPILOG + show.EPILOG + verify.EPILOG + export.EPILOG)))
OF_OTHER_RUNS = ("KEY", "sentiment/", "name=longer")  # keys and a task that this run does not have


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model, tiny_encoder) -> Path:
    """A folder with experiments/rpo_vs_dpo.yaml, tiny, and its results."""
    folder = tmp_path_factory.mktemp("inspect")
    (folder / "experiments").mkdir()
    lora = {"name": str(tiny_model), "tune": "lora", "lora": {"rank": 2}}
    judge = {"kind": "gold", "reward": "tests.tiny_experiment:length"}
    losses = {"dpo": {}, "rpo_paired": {}}
    changes = {"model": lora, "judge": judge, "losses": losses, "results": "results"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        path = write_experiment(folder / "experiments", tiny_model, tiny_encoder, "rpo_vs_dpo", **changes)
        assert run(path) == 0
    return folder


def test_the_commands_are_found():
    names = {shlex.split(command)[0] for command in COMMANDS}
    assert names == {"status", "show", "verify", "export"} and len(COMMANDS) > 10


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_works(command, folder, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(folder)
    words = shlex.split(command)
    if "--into" in words:
        words[words.index("--into") + 1] = str(tmp_path / "out")
    foreign = any(word in command for word in OF_OTHER_RUNS)
    assert main(words) == (2 if foreign else 0)
    captured = capsys.readouterr()
    assert captured.err.startswith("error: no ") if foreign else captured.out
