"""HH: the packaged pairs, and Anthropic's layout."""

import pytest

from harness.core.prompt import prompt_key
from harness.tasks import TASKS, Message
from harness.tasks.formats import Dropped, parse_standard
from harness.tasks.sources import read_packaged


def dialogue(question, answer):
    return f"\n\nHuman: {question}\n\nAssistant: {answer}"


def rows(start, stop):
    return [{"chosen": dialogue(f"q {i}", "good"), "rejected": dialogue(f"q {i}", "bad")} for i in range(start, stop)]


def test_the_packaged_rows_and_their_splits_never_change_unnoticed(load):
    data = load("hh")
    assert data.labels == "human"
    assert data.counts == {
        "rows read": 3046,
        "rows dropped, empty completion": 4,
        "rows dropped, chosen and rejected are the same": 2,
        "train: rows": 1535,
        "dev: rows": 312,
        "judge_fit: rows": 717,
        "judge_fit: pairs": 717,
        "judge_test: rows": 476,
        "judge_test: pairs": 476,
        "test: rows without a label": 0,
        "dev: questions": 312,
        "test: questions": 476,
    }
    sizes = [len(part) for part in (data.train, data.dev, data.judge_fit, data.judge_test, data.test)]
    assert sizes == [1535, 312, 717, 476, 476]
    assert [question.id for question in data.test[:2]] == ["00e01dec261b1c4c", "0156e33a6615ed19"]


def test_packaged_dialogues_alternate_and_put_together_again_are_the_files_text():
    names = {"user": "Human", "assistant": "Assistant"}
    for row in read_packaged("hh"):
        try:
            record = parse_standard(row)
        except Dropped:
            continue
        roles = [turn.role for turn in record.prompt]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        for side in ("chosen", "rejected"):
            turns = [*record.prompt, Message("assistant", getattr(record.preference, side))]
            again = " ".join(f"{names[turn.role]}: {turn.content}" for turn in turns)
            # The file has zero, one or two spaces after the colon.
            assert "".join(again.split()) == "".join(row.values[side].split())


def test_packaged_prompts_stand_in_one_split_and_are_no_part_of_another_split_s(load):
    data = load("hh")
    parts = [data.train, data.dev, data.judge_fit, [*data.test, *data.judge_test]]
    owner = {prompt_key(row.prompt): number for number, part in enumerate(parts) for row in part}
    for number, part in enumerate(parts):
        for row in part:
            heads = [row.prompt[:length] for length in range(1, len(row.prompt) + 1, 2)]
            assert {owner.get(prompt_key(head), number) for head in heads} == {number}


def test_the_baseline_is_the_chosen_response(load):
    data = load("hh")
    chosen = {(pair.prompt, pair.chosen) for pair in data.judge_test}
    assert all((question.prompt, question.baseline) in chosen for question in data.test)
    assert TASKS.get("hh").baseline == "the chosen response"


@pytest.mark.parametrize("ending", ["jsonl.gz", "parquet"])
def test_a_folder_of_the_hub_s_layout(load, write, tmp_path, ending):
    for subset, start in (("harmless-base", 0), ("helpful-base", 1000)):
        write(f"hh/{subset}/train.{ending}", rows(start, start + 300))
        write(f"hh/{subset}/test.{ending}", rows(start + 290, start + 340))
    write("hh/red-team-attempts/red_team_attempts.jsonl.gz", [{"transcript": "of another kind"}])
    one = load("hh", tmp_path / "hh", "harmless-base")
    assert len(one.test) == len(one.judge_test) == 50
    assert one.counts["rows read"] == 350 and one.counts["rows dropped, prompt also in test"] == 10
    assert one.labels == "human"
    both = load("hh", tmp_path / "hh")
    assert both.counts["rows read"] == 700 and len(both.test) == 100


def test_a_file_in_a_standard_format_is_read_too_but_its_labels_are_not_called_human(load, write):
    path = write("x.jsonl", [{"prompt": f"q {i}", "chosen": "good", "rejected": "bad"} for i in range(100)])
    data = load("hh", path)
    assert data.labels == "the data set's labels" and data.counts["rows read"] == 100
