"""A finished run for the tests of what shows results, and an experiment that must be refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli.main import main
from tests.conftest import registrations_undone
from tests.tiny_experiment import run, write_experiment

FAILS = """
from losses import register_loss


@register_loss("fails")
def fails(batch, *, beta: float = 0.1):
    raise ValueError("no [bold]gradient\\x1b[31m\\nand more")
"""


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_model, tiny_encoder) -> Path:
    """The file of an experiment that has run: SFT, DPO with two settings and a loss that fails, on two tasks."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "fails.py").write_text(FAILS)
    path = write_experiment(
        folder,
        tiny_model,
        tiny_encoder,
        losses={"dpo": {"beta": [0.1, 0.5]}, "fails": {}},
        plugins=[str(folder / "fails.py")],
        judge={"kind": "gold", "reward": "tests.tiny_experiment:length"},
    )
    with registrations_undone():
        assert run(path) == 1
    return path


@pytest.fixture
def refuses(tmp_path, tiny_model, tiny_encoder, capsys):
    """Run an experiment with changes that must be refused; return the one line that it says."""

    def refuses(*overrides: str, **changes) -> str:
        path = write_experiment(tmp_path, tiny_model, tiny_encoder, **changes)
        assert main(["run", str(path), *overrides]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
        assert captured.out == "", "nothing is announced before everything is checked"
        assert not (tmp_path / "results").exists(), "nothing half-written"
        return captured.err

    return refuses


def task(**changes) -> dict:
    """Return the section `tasks` of a small experiment on HH, with changes."""
    return {"hh": {"train_pairs": 8, "dev_pairs": 4, "test_prompts": 4, "max_prompt_tokens": 96, **changes}}
