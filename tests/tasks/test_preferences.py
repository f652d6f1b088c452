"""Any data set in the standard formats, and the registry of all tasks."""

import subprocess
import sys

import pytest

from harness.core.errors import UserError
from harness.tasks import TASKS
from losses.registry import RegistryError

PAIRS = [{"prompt": f"q {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(100)]
MESSAGES = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }
    for row in PAIRS
]
CONVERSATIONS = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in MESSAGES]


@pytest.mark.parametrize("rows", [PAIRS, MESSAGES, CONVERSATIONS], ids=["text", "messages", "conversations"])
@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.jsonl.gz", "x.parquet"])
def test_one_data_set_is_the_same_task_in_every_form(load, write, rows, name):
    data = load("preferences", write(name, rows[::-1]))
    assert data == load("preferences", write("reference.jsonl", PAIRS))
    assert data.labels == "the data set's labels"
    assert len(data.train) + len(data.dev) + len(data.judge_fit) + len(data.judge_test) == 100


def test_unpaired_data(load, write):
    rows = [{"prompt": f"q {i // 2}", "completion": f"{i}", "label": i % 2 == 0} for i in range(400)]
    data = load("preferences", write("x.parquet", rows))
    assert not any(preference.paired for preference in data.train)
    assert {(p.chosen is None) for p in data.train} == {True, False}
    assert all(int(question.baseline) % 2 == 0 for question in data.test)
    assert all(preference.paired for preference in data.judge_fit)


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
def test_lists_of_scored_responses(load, write, name):
    responses = [[{"text": f"{k} of {i}", "score": k + 0.5} for k in range(2 + i % 3)] for i in range(100)]
    data = load("preferences", write(name, [{"prompt": f"q {i}", "responses": r} for i, r in enumerate(responses)]))
    assert {len(p.scores) for p in data.train} == {2, 3, 4}
    for preference in data.train:
        texts = [preference.chosen, *(other.text for other in preference.others), preference.rejected]
        number = preference.prompt[0].content.removeprefix("q ")
        assert texts == [f"{k} of {number}" for k in reversed(range(len(texts)))]
    assert all(question.baseline.startswith(("1", "2", "3")) for question in data.test)


def test_ultrafeedback_of_the_hub_is_the_task_of_its_lists(load, write):
    """The data set's own columns in Parquet, as on the hub, including fields of the responses that are not read."""
    lists = [{"prompt": f"q {i}", "responses": [{"text": f"{k} {i}", "score": k} for k in range(4)]} for i in range(40)]
    rows = [
        {
            "source": "flan",
            "instruction": row["prompt"],
            "models": ["a", "b"],
            "completions": [
                {"model": "a", "response": r["text"], "overall_score": float(r["score"]), "critique": "..."}
                for r in row["responses"]
            ],
            "correct_answers": ["None"],
        }
        for row in lists
    ]
    assert load("preferences", write("u.parquet", rows)) == load("preferences", write("l.jsonl", lists))


def test_a_split_column_is_respected(load, write):
    splits = ["train"] * 80 + ["validation"] * 10 + ["test"] * 10
    data = load("preferences", write("x.jsonl", [{**row, "split": s} for row, s in zip(PAIRS, splits, strict=True)]))
    assert sorted(q.baseline for q in data.test) == sorted(row["chosen"] for row in PAIRS[90:])
    assert sorted(p.chosen for p in data.dev) == sorted(row["chosen"] for row in PAIRS[80:90])


def test_data_must_be_named(load):
    with pytest.raises(
        UserError, match="'preferences' has no packaged data; name a file, a folder or a hub id in 'data'"
    ):
        load("preferences")


def test_a_bad_row_is_an_error_with_file_and_line(load, write):
    path = write("x.jsonl", [*PAIRS[:4], {"prompt": "q", "chosen": "a"}])
    with pytest.raises(UserError) as error:
        load("preferences", path)
    assert str(error.value).startswith(f"{path}:5: no column 'rejected'; columns here: prompt, chosen; accepted: ")


def test_the_built_in_tasks_are_registered():
    tasks = {name: TASKS.get(name) for name in ("hh", "tldr", "alpaca_eval", "preferences")}
    assert {name: task.keep for name, task in tasks.items()} == {
        "hh": "end",
        "tldr": "start",
        "alpaca_eval": "start",
        "preferences": "end",
    }
    assert [task.template for task in tasks.values()] == ["hh", "tldr", "alpaca_eval", "hh"]
    with pytest.raises(RegistryError, match=r"unknown task 'hhh'; did you mean 'hh'\?"):
        TASKS.get("hhh")


def test_importing_the_tasks_imports_nothing_heavy():
    code = "import sys, harness.tasks; print([m for m in ('torch', 'datasets', 'pyarrow') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
