"""PandaLM: comparisons of two responses by three annotators, merged into lists with scores."""

import pytest

from harness.core.errors import UserError
from harness.tasks.pandalm import lists
from harness.tasks.rows import Row


def comparison(first, second, *votes, instruction="Say it.", extra="", number=1):
    values = {"instruction": instruction, "input": extra, "response1": first, "response2": second}
    values |= {f"annotator{i}": vote for i, vote in enumerate(votes, 1)}
    return Row(values, f"data.jsonl:{number}")


def scores(*rows):
    return [{r["text"]: r["score"] for r in row.values["responses"]} for row in lists(rows)]


def test_the_packaged_rows_and_their_splits_never_change_unnoticed(load):
    data = load("pandalm")
    assert data.labels == "human"
    assert data.counts == {
        "rows read": 170,
        "rows dropped, all responses score alike": 13,
        "train: rows": 72,
        "dev: rows": 15,
        "judge_fit: rows": 47,
        "judge_fit: pairs": 47,
        "judge_test: rows": 23,
        "judge_test: pairs": 23,
        "test: rows without a label": 0,
        "dev: questions": 15,
        "test: questions": 23,
    }
    assert {len(preference.scores) for preference in data.train} == {2, 3, 4, 5}
    assert all(-1 <= score <= 1 for preference in data.train for score in preference.scores)


def test_a_score_is_votes_for_less_votes_against_as_a_share_of_all():
    """a: 2 of 3 for, then 3 of 3 for: 5/6. b: 2 of 3 against, then one for, one against and a tie: -2/6. c: -3/6."""
    scored = scores(comparison("a", "b", 1, 1, 0), comparison("c", "a", 2, 2, 2), comparison("b", "c", 1, 2, 0))
    assert scored == [pytest.approx({"a": 5 / 6, "b": -2 / 6, "c": -3 / 6})]


def test_one_list_for_each_instruction_with_its_input():
    rows = [
        comparison("a", "b", 1, 1, 1, extra="x"),
        comparison("a", "b", 2, 2, 2),
        comparison("c", "b", 1, 1, 1, extra=" x\n"),
    ]
    assert [row.values["prompt"] for row in lists(rows)] == ["Say it.\n\nx", "Say it."]
    assert scores(*rows) == [{"a": 1.0, "b": -1.0, "c": 1.0}, {"a": -1.0, "b": 1.0}]


def test_the_answer_that_the_file_holds_as_a_truth_value_is_text_again():
    assert scores(comparison(True, "no", 1, 1, 0)) == [pytest.approx({"True": 2 / 3, "no": -2 / 3})]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (comparison("a", "b", 1, 1, 3, number=4), "data.jsonl:4: column 'annotator3' must be 0 (a tie), 1 or 2, got 3"),
        (comparison("a", "b", 1, True, 1), "column 'annotator2' must be 0 (a tie), 1 or 2, got True"),
        (comparison("a", "b", 1, 1), "no column 'annotator3'"),
        (comparison("a", 7, 1, 1, 1), "column 'response2' must be text, got a number"),
        (Row({"instruction": "a"}, "data.jsonl:1"), "no column 'input'"),
    ],
)
def test_rows_that_are_not_comparisons_are_errors_with_the_place(row, message):
    with pytest.raises(UserError) as error:
        list(lists([row]))
    assert message in str(error.value)
