from pathlib import Path

import pytest

from harness.core.store import Store
from harness.evaluation.base import JudgeContext
from tests.evaluation.fake_openai import FakeOpenAI, prefers


@pytest.fixture
def make_context(tmp_path: Path):
    """Return a function that makes a judge's context in a folder of the test."""

    def make(folder: str = "", **changes) -> JudgeContext:
        root = tmp_path / folder
        settings = {
            "template": "hh",
            "fit": [],
            "held_out": [],
            "labels": "made up",
            "embed": None,
            "encoder": "none",
            "store": Store(root / "store"),
            "cache": root / "cache",
            "account": "tests",
        }
        return JudgeContext(**{**settings, **changes})

    return make


@pytest.fixture
def server():
    """An endpoint that prefers the response with "good" in it."""
    with FakeOpenAI(prefers("good")) as running:
        yield running
