"""Data that cannot be trained or judged on are refused in one clear line, before anything is written."""

from __future__ import annotations

import json

import pytest

from harness.cli.main import main
from tests.cli.conftest import task
from tests.tiny_experiment import FITTED, write_experiment


def test_a_missing_data_file(refuses, tmp_path):
    assert "no data at" in refuses(tasks=task(data=str(tmp_path / "nowhere.jsonl")))


def test_an_empty_data_file(refuses, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    assert "is empty: it holds no rows" in refuses(tasks=task(data=str(tmp_path / "empty.jsonl")))


def test_a_malformed_data_file_is_named_with_its_line(refuses, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": \n')
    assert "bad.jsonl:2: not valid JSON" in refuses(tasks=task(data=str(tmp_path / "bad.jsonl")))


def test_data_without_the_columns(refuses, tmp_path):
    (tmp_path / "columns.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejectd": "c"}\n')
    message = refuses(tasks=task(data=str(tmp_path / "columns.jsonl")))
    assert "columns.jsonl:1: no column 'rejected' (is 'rejectd' meant?)" in message


def test_a_loss_that_needs_scores_on_data_without(refuses):
    assert "loss 'odpo' needs scores, and 24 of 24 train examples of task 'hh' have none" in refuses(
        losses={"odpo": {}}
    )


def scored(folder, *, without: int = 0) -> dict:
    """A task of lists of responses; so many rows are pairs without scores instead."""
    rows = [
        {"prompt": f"q {i}", "responses": [{"text": f"{k}", "score": k} for k in range(2 + i % 3)]} for i in range(60)
    ]
    rows += [{"prompt": f"p {i}", "chosen": "a", "rejected": "b"} for i in range(without)]
    (folder / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return task(kind="preferences", data=str(folder / "lists.jsonl"), train_pairs=None, judge_pairs=None)


@pytest.mark.parametrize("loss", ["odpo", "plackett_luce"])
def test_a_loss_that_needs_all_scores_on_data_where_some_are_missing(refuses, tmp_path, loss):
    message = refuses(tasks=scored(tmp_path, without=30), losses={loss: {}})
    assert f"loss '{loss}' needs scores, and" in message and "train examples of task 'hh' have none" in message


def test_a_listwise_loss_on_unpaired_data(refuses, tmp_path):
    rows = [{"prompt": f"q {i // 2}", "completion": f"{i}", "label": i % 2 == 0} for i in range(400)]
    (tmp_path / "unpaired.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = task(kind="preferences", data=str(tmp_path / "unpaired.jsonl"))
    message = refuses(tasks=tasks, losses={"plackett_luce": {}})
    assert "loss 'plackett_luce' needs several responses to each prompt, and the data of task 'hh' are" in message


@pytest.mark.slow
def test_a_prompt_that_nothing_is_left_of(refuses):
    assert "max_prompt_tokens=5 leaves no room for a prompt" in refuses(tasks=task(max_prompt_tokens=5))
    assert "none is left within max_prompt_tokens=16" in refuses(tasks=task(max_prompt_tokens=16, overlong="drop"))


def test_unpaired_data_of_one_class_alone(refuses, tmp_path):
    rows = [{"prompt": f"q{i}", "completion": "a", "label": True} for i in range(300)]
    (tmp_path / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {"mine": {"kind": "preferences", "data": str(tmp_path / "good.jsonl"), "max_prompt_tokens": 64}}
    assert "unpaired train examples none is rejected" in refuses(tasks=tasks, losses={"rpo_unpaired": {}})


def test_a_judge_with_too_few_pairs_is_said_before_anything_is_written(tmp_path, tiny_model, tiny_encoder, capsys):
    path = write_experiment(tmp_path, tiny_model, tiny_encoder, judge=FITTED)
    assert main(["run", str(path), "tasks.hh.judge_pairs=5"]) == 2
    assert "too few to fit on" in capsys.readouterr().err
    assert not (tmp_path / "results" / "tiny").exists()
