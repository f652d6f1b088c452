"""Many rows are tokenised by several processes, to what one process makes of them, in their order."""

import pytest

from harness.backbones.language_model import parallel_rows
from harness.backbones.language_model.parallel_rows import tokenised
from harness.backbones.language_model.policy import load_tokenizer
from harness.backbones.language_model.tokenise import Dropped, Tokeniser
from harness.core.config import ModelConfig, TaskConfig
from harness.core.render import Renderer
from harness.tasks import TASKS, Message, Preference, TaskData

ROWS = [
    Preference((Message("user", f"Question {number}?"),), "yes " * (number % 40), f"no, {number}")
    for number in range(2 * parallel_rows.ROWS_PER_WORKER)
]


@pytest.fixture(scope="module")
def tokeniser(tiny_model):
    renderer = Renderer(load_tokenizer(tiny_model, ModelConfig()))
    config = TaskConfig(max_prompt_tokens=40, max_completion_tokens=30, overlong="drop")
    return Tokeniser.of(TASKS.get("preferences"), TaskData(ROWS, [], [], [], [], "human"), config, renderer)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_several_processes_make_what_one_makes(tokeniser, monkeypatch):
    monkeypatch.setattr(parallel_rows, "cpu_count", lambda: 2)
    many = list(tokenised(tokeniser.example, ROWS))
    parts = [ROWS[start : start + 999] for start in range(0, len(ROWS), 999)]
    few = [outcome for part in parts for outcome in tokenised(tokeniser.example, part)]
    assert len(many) == len(ROWS)
    assert {str(outcome) for outcome in many if isinstance(outcome, Dropped)} == {
        "dropped, empty completion",
        "dropped, too long",
    }
    some = list(zip(range(1000), tokenised(tokeniser.example, ROWS), strict=False))  # it needs no more
    assert len(some) == 1000
    assert [str(row) if isinstance(row, Dropped) else row for row in many] == [
        str(row) if isinstance(row, Dropped) else row for row in few
    ]


def test_rows_are_read_only_as_they_are_asked_for(tokeniser):
    read = []

    def tokenise(row):
        read.append(row)
        return tokeniser.example(row)

    outcomes = iter(tokenised(tokenise, ROWS[:10]))
    next(outcomes)
    assert len(read) == 1
