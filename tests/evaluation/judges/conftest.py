"""The judge behind an endpoint, with a key, and comparisons for it."""

from __future__ import annotations

import pytest

from harness.core.prompt import Message
from harness.evaluation.base import Comparison
from tests.evaluation.fake_openai import judge_of

KEY = "sk-very-secret-0123456789"
PROMPT = (Message("user", "How do I boil an egg?"),)
GOOD_FIRST = Comparison("a", PROMPT, "a good answer", "a poor answer")
GOOD_SECOND = Comparison("b", PROMPT, "a weak answer", "a good answer")


@pytest.fixture
def key(monkeypatch):
    """The key of the endpoint, in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def ask(server, make_context):
    """Return a function that makes a judge for the server and judges with it."""

    def ask(*comparisons, **options):
        return judge_of(server, make_context(), **options).judge(comparisons, lambda done: None)

    return ask
