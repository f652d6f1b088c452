"""TL;DR: the packaged summaries with GPT-4's preferences, and OpenAI's comparisons with human preferences."""

import pytest

from harness.core.errors import UserError
from harness.tasks import TASKS, Message
from harness.tasks.rows import Row
from harness.tasks.sources import read_packaged
from harness.tasks.tldr import parse


def comparison(number, policies=("ref", "sup2"), choice=0, **changes):
    info = {
        "id": "t3",
        "post": f"post {number}\n",
        "title": "A title",
        "subreddit": "tifu",
        "site": None,
        "article": None,
    }
    texts = [f" {policy} {number}" for policy in policies]
    summaries = [{"text": text, "policy": policy, "note": None} for text, policy in zip(texts, policies, strict=True)]
    return {
        "info": info,
        "summaries": summaries,
        "choice": choice,
        "split": "train",
        "extra": {"confidence": 3},
    } | changes


def test_the_packaged_rows_and_their_splits_never_change_unnoticed(load):
    data = load("tldr")
    assert data.labels == "gpt-4 preferences"
    assert data.counts == {
        "rows read": 1945,
        "train: rows": 482,
        "dev: rows": 106,
        "judge_fit: rows": 268,
        "judge_fit: pairs": 268,
        "judge_test: rows": 144,
        "judge_test: pairs": 144,
        "test: rows without a label": 945,
        "dev: questions": 106,
        "test: questions": 1089,
    }
    assert [len(part) for part in (data.train, data.dev, data.judge_fit, data.judge_test, data.test)] == [
        482, 106, 268, 144, 1089,
    ]  # fmt: skip


def test_packaged_posts_lose_only_the_tl_dr_that_the_renderer_puts_back():
    suffix = TASKS.get("tldr").prompt_suffix
    for row in read_packaged("tldr"):
        (turn,) = parse(row).prompt
        assert turn.role == "user" and (turn.content + suffix).split() == row.values["post"].split()


def test_packaged_preferences_and_baselines_are_the_file_s():
    for row in read_packaged("tldr"):
        record, preferred = parse(row), row.values["preferred"]
        assert record.baseline == row.values["human_summary"].strip()
        if preferred is None:
            assert record.preference is None
        else:
            assert record.preference.chosen == row.values[f"{preferred}_summary"].strip()
            assert record.preference.rejected != record.preference.chosen


def test_a_comparison_is_formatted_like_the_packaged_posts():
    record = parse(Row(comparison(1, choice=1), "x:1"))
    assert record.prompt == (Message("user", "SUBREDDIT: r/tifu\n\nTITLE: A title\n\nPOST: post 1"),)
    assert (record.preference.chosen, record.preference.rejected) == ("sup2 1", "ref 1")
    assert record.baseline == "ref 1"


def test_a_comparison_of_two_models_has_no_baseline():
    assert parse(Row(comparison(1, policies=("sup1", "sup2")), "x:1")).baseline is None


@pytest.mark.parametrize("ending", ["jsonl.gz", "parquet"])
def test_a_folder_of_the_hub_s_layout(load, write, tmp_path, ending):
    write(f"tldr/comparisons/train/0000.{ending}", [comparison(i) for i in range(300)])
    held_out = [comparison(i, split="valid1") for i in range(295, 330)]
    held_out += [comparison(i, policies=("sup1", "sup2"), choice=1, split="valid2") for i in range(320, 340)]
    news = {"id": "cnn", "post": None, "title": None, "subreddit": None, "site": "cnn", "article": "news"}
    held_out.append(comparison(999, info=news, split="valid2"))
    write(f"tldr/comparisons/validation/0000.{ending}", held_out)
    write(f"tldr/axis/test/0000.{ending}", [{"rating": 3}])
    data = load("tldr", tmp_path / "tldr")
    assert data.labels == "human"
    counts = data.counts
    assert counts["rows read"] == 356 and counts["rows dropped, not a Reddit post"] == 1
    assert counts["rows dropped, prompt also in test"] == 5
    assert len(data.judge_test) == 55
    assert counts["test: questions"] == 35 and counts["test: rows without a baseline"] == 20
    assert {question.baseline.split()[0] for question in data.test} == {"ref"}
    assert load("tldr", tmp_path / "tldr", "comparisons") == data


def test_a_local_copy_in_the_packaged_layout_does_not_claim_whose_preferences_they_are(load, write):
    rows = [
        {"post": f"post {i}\nTL;DR:", "model_summary": "m", "human_summary": "h", "preferred": "human"}
        for i in range(99)
    ]
    data = load("tldr", write("x.jsonl", rows))
    assert data.labels == "the data set's labels"
    assert data.train[0].prompt[0].content.startswith("post ") and not data.train[0].prompt[0].content.endswith(":")


@pytest.mark.parametrize(
    "row, message",
    [
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "no column 'info'; columns here: prompt, chosen, rejected; "
            "accepted: info/summaries/choice, or post/model_summary/human_summary/preferred "
            "(for prompt/chosen/rejected set kind: preferences)",
        ),
        ({"post": "a", "model_summary": "b"}, "no column 'human_summary'"),
        (
            {"post": "a", "model_summary": "b", "human_summary": "c", "preferred": "both"},
            "column 'preferred' must be 'model', 'human' or null, got 'both'",
        ),
        ({"post": 1, "model_summary": "b", "human_summary": "c"}, "column 'post' must be text, got a number"),
        (comparison(1, info="a post"), "column 'info' must be an object with post, title and subreddit, got 'a post'"),
        (comparison(1, summaries=["a", "b"]), "column 'summaries' must be a list of objects with text and policy"),
        (comparison(1, choice=2), "expected two summaries and a choice of 0 or 1, got 2 and 2"),
        ({"info": {}, "choice": 1}, "no column 'summaries'"),
    ],
)
def test_bad_rows_are_errors_with_file_and_line(load, write, row, message):
    path = write("x.jsonl", [comparison(0), row])
    with pytest.raises(UserError) as error:
        load("tldr", path)
    assert f"{path}:2: {message}" in str(error.value)
