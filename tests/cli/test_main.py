"""The command line: help, and an exit status and one clear line for each way to end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli.main import COMMANDS, main
from tests.conftest import REPOSITORY
from tests.tiny_experiment import write_experiment


def harness(*arguments: str, cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess:
    """Run the command as a user does: in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )


def test_a_command_that_something_else_ends_has_not_succeeded(tmp_path, monkeypatch, capsys):
    """A loss that calls sys.exit while it is listed, for example."""
    (tmp_path / "exits.py").write_text(
        "import sys\nfrom losses import register_loss\n\n\n"
        '@register_loss("exits", start_value=lambda: sys.exit(0) if "--json" in sys.argv else 0.0)\n'
        "def exits(batch):\n    return batch.logratio_margin\n"
    )
    arguments = ["losses", "--json", f"--plugin={tmp_path / 'exits.py'}"]
    monkeypatch.setattr(sys, "argv", ["harness", *arguments])
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.splitlines()[-1] == "SystemExit: 0"


def test_a_report_takes_no_overrides_that_it_would_ignore(tmp_path, tiny_model, tiny_encoder, capsys):
    path = write_experiment(tmp_path, tiny_model, tiny_encoder)
    assert main(["report", str(path), "seeds=[1]"]) == 2
    assert "only name= and results= count" in capsys.readouterr().err


def test_a_report_without_a_run(tmp_path, tiny_model, tiny_encoder, capsys):
    path = write_experiment(tmp_path, tiny_model, tiny_encoder)
    assert main(["report", str(path)]) == 2
    assert "run it first" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["run"], ["report"], ["losses"], ["check"]])
def test_help_has_examples(command):
    result = harness(*command, "--help")
    assert result.returncode == 0
    assert "python -m harness" in result.stdout


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__.rpartition(".")[2])
def test_help_says_what_each_exit_status_means(command):
    assert re.search(r"^exit status: 0 .+, 2 something .*must be changed first$", command.EPILOG, re.MULTILINE)


def test_help_says_what_a_cell_is_and_where_the_keys_are_documented(capsys):
    for arguments, told in (
        (("--help",), "A cell is one policy"),
        (("run", "--help"), "documented in harness/core/config.py"),
    ):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
        assert told in capsys.readouterr().out
    assert (REPOSITORY / "harness/core/config.py").is_file()


def test_a_command_without_arguments_says_what_is_missing():
    result = harness("run")
    assert result.returncode == 2 and "experiment" in result.stderr


def test_errors_reach_a_terminal_without_a_traceback(tmp_path):
    result = harness("run", "nowhere.yaml", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: no experiment file at nowhere.yaml\n"
