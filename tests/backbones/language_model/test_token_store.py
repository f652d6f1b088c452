"""Tokens in the store: read where data, model and limits are the same, and equal to those that were made."""

from dataclasses import replace

import pytest

from harness.backbones.language_model import token_store
from harness.backbones.language_model.policy import load_tokenizer
from harness.backbones.language_model.token_store import TokenStore
from harness.core.config import ModelConfig, TaskConfig
from harness.core.render import Renderer
from harness.core.store import Store
from harness.tasks import TASKS, Message, Preference, Question, Scored, TaskData

PROMPT, OTHER = (Message("user", "Why?"),), (Message("system", "Be brief."), Message("user", "How long? " * 30))
PAIRS = [
    Preference(PROMPT, "Because.", "No."),
    Preference(OTHER, "Ünlike " * 30, "No.", 2.0, 0.5, (Scored("Because.", 1.0), Scored("", 0.75))),
    Preference(PROMPT, "", "dropped, since it is empty"),
    Preference(PROMPT, "No.", "Because.", 1e-300, -0.1),
]
SINGLE = [Preference(PROMPT, "Because.", None), Preference(PROMPT, None, "No."), Preference(OTHER, None, "No.")]
QUESTIONS = [Question("b", PROMPT, "Because."), Question("a", OTHER, "So.")]
DATA = TaskData(PAIRS, SINGLE, QUESTIONS, PAIRS[:1], PAIRS[1:2], "human", {"rows read": 9}, QUESTIONS[1:])
LIMITS = TaskConfig(max_prompt_tokens=40, max_completion_tokens=16)


@pytest.fixture
def prepare(tiny_model, tmp_path, monkeypatch):
    """Return a function that prepares data, and tells whether anything was kept."""
    monkeypatch.setattr(token_store, "KEPT_FROM", 4)
    renderer = Renderer(load_tokenizer(tiny_model, ModelConfig()))

    def prepared(data=DATA, config=LIMITS, model="one", task="preferences"):
        store = Store(tmp_path)
        before = set(tmp_path.glob("tokens/*"))
        made = TokenStore(store, renderer, model).prepare(
            "task", TASKS.get(task), data, config, lambda done, total: None
        )
        return made, set(tmp_path.glob("tokens/*")) != before

    return prepared


def test_what_is_read_is_what_was_made(prepare):
    (made, tokenised), (read, again) = prepare(), prepare()
    assert (tokenised, again) == (True, False)
    assert read == made
    assert {name: split.hash for name, split in read.splits.items()} == {n: s.hash for n, s in made.splits.items()}
    assert read.questions["test"].hash == made.questions["test"].hash


def test_a_task_that_trains_nothing_has_questions_alone(prepare):
    (made, _), (read, again) = prepare(task="alpaca_eval"), prepare(task="alpaca_eval")
    assert not again and read == made and not read.splits and len(read.questions["test"]) == 2


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"model": "another"}, id="model"),
        pytest.param({"config": replace(LIMITS, max_prompt_tokens=41)}, id="limit"),
        pytest.param({"config": replace(LIMITS, overlong="drop")}, id="overlong"),
        pytest.param({"config": replace(LIMITS, test_prompts=1)}, id="count"),
        pytest.param({"data": replace(DATA, train=[replace(PAIRS[0], chosen="Because")])}, id="completion"),
        pytest.param(
            {"data": replace(DATA, train=[PAIRS[0], replace(PAIRS[1], rejected_score=0.25), *PAIRS[2:]])}, id="score"
        ),
        pytest.param({"data": replace(DATA, test=[replace(QUESTIONS[0], baseline="?"), QUESTIONS[1]])}, id="baseline"),
        pytest.param(
            {"data": replace(DATA, train=[replace(PAIRS[0], prompt=(Message("system", "Why?"),)), *PAIRS[1:]])},
            id="role",
        ),
        pytest.param({"task": "tldr"}, id="task"),
    ],
)
def test_what_decides_the_tokens_decides_whether_they_are_read(prepare, change):
    prepare()
    made, tokenised = prepare(**change)
    assert tokenised
    assert prepare(**change) == (made, False)


def test_where_the_data_came_from_is_no_part_of_it(prepare):
    prepare()
    assert prepare(config=replace(LIMITS, data="/another/file.jsonl", judge_pairs=0))[1] is False


def test_few_rows_are_not_kept(prepare):
    few = replace(DATA, train=PAIRS[:1], dev=SINGLE[:2], test=QUESTIONS[:1], dev_questions=[])
    assert prepare(few)[1] and not prepare(few, replace(LIMITS, dev_pairs=1, test_prompts=1), task="alpaca_eval")[1]


def test_a_store_that_cannot_be_written_keeps_nothing(prepare, tmp_path):
    (tmp_path / "tokens").write_text("a file in the place of the folder")
    assert prepare()[0].splits["train"].examples and prepare() == prepare()


def test_equal_numbers_are_one_object_in_tokens_that_were_read(prepare):
    prepare()
    (read, _) = prepare()
    seen = {}
    for split in read.splits.values():
        for sequence in split.sequences:
            for token in (*sequence.prompt, *sequence.completion):
                assert seen.setdefault((id(split), token), token) is token
