"""AlpacaEval: 805 questions, no training."""

import pytest

from harness.core.errors import UserError
from harness.tasks import TASKS
from harness.tasks.sources import read_packaged


def test_every_packaged_instruction_is_a_question_with_its_reference_output(load):
    data = load("alpaca_eval")
    outputs = {row.values["instruction"]: row.values["output"].strip() for row in read_packaged("alpaca_eval")}
    assert {q.prompt[0].content: q.baseline for q in data.test} == outputs and len(data.test) == 805
    assert data.counts["rows read"] == data.counts["test: questions"] == 805
    assert not (data.train or data.dev or data.judge_fit or data.judge_test)
    assert TASKS.get("alpaca_eval").trains is False


def test_the_first_questions_are_a_sample_of_all_five_sources(load):
    """The file is in blocks, one per source; its first 50 rows all have the same source."""
    source = {row.values["instruction"]: row.values["dataset"] for row in read_packaged("alpaca_eval")}
    first = [source[question.prompt[0].content] for question in load("alpaca_eval").test[:50]]
    assert len(set(first)) == 5 and max(map(first.count, first)) < 30


@pytest.mark.parametrize(
    "name", ["alpaca_eval_gpt4_baseline.json", "eval.jsonl.gz", "data/eval-00000-of-00001.parquet"]
)
def test_a_copy_of_the_hub_s_file_or_folder_is_read_like_the_packaged_file(load, write, tmp_path, name):
    rows = [{**row.values, "generator": "gpt4_1106_preview"} for row in read_packaged("alpaca_eval")]
    path = write(f"copy/{name}", rows[::-1])
    assert load("alpaca_eval", path).test == load("alpaca_eval").test
    assert load("alpaca_eval", tmp_path / "copy").test == load("alpaca_eval").test


def test_of_a_copy_of_the_hub_s_repository_only_the_gpt4_baseline_is_read(load, write, tmp_path):
    row = {"instruction": "Do.", "output": "Done.", "generator": "g", "dataset": "d"}
    write("alpaca_eval.json", [{**row, "output": "of another model"}])
    write("alpaca_eval_gpt4_baseline.json", [row])
    assert [question.baseline for question in load("alpaca_eval", tmp_path).test] == ["Done."]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"instruction": "Do."}, "no column 'output'; columns here: instruction; accepted: instruction and output"),
        ({"instruction": "Do.", "output": ["a"]}, "column 'output' must be text, got a list"),
    ],
)
def test_bad_rows_are_errors_with_file_and_line(load, write, row, message):
    path = write("x.jsonl", [row])
    with pytest.raises(UserError) as error:
        load("alpaca_eval", path)
    assert f"{path}:1: {message}" == str(error.value)


def test_empty_rows_are_dropped_and_counted(load, write):
    rows = [
        {"instruction": "Do.", "output": "a"},
        {"instruction": " ", "output": "a"},
        {"instruction": "Do", "output": ""},
    ]
    counts = load("alpaca_eval", write("x.jsonl", rows)).counts
    assert counts["rows dropped, empty prompt"] == counts["rows dropped, empty completion"] == 1
    assert counts["test: questions"] == 1
