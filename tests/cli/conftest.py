"""One finished run, one of whose losses fails, for the tests of what shows results."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import undone
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
    with contextmanager(undone)():  # a session's fixture begins before those that undo registrations
        assert run(path) == 1
    return path
