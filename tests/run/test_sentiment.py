"""The controlled experiment from end to end: a tiny model from scratch, preferences on its samples, measurements."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from harness.cli.main import main
from harness.core.store import read_json, read_jsonl
from tests.tasks.reviews_file import write_reviews
from tests.tiny_experiment import run

LOSSES = {
    "dpo": {"beta": 0.1},
    "ipo": {"tau": 0.1},
    "kto": {"beta": 0.3},
    "rpo_paired": {"temperature": 0.5},
    "rpo_unpaired": {},
    "rpo_uniform": {},
    "rpo": {"weighting": "uniform_mean"},
    "rpo_diagonal": {},
    "robust_dpo": {},
    "odpo": {},
    "simpo": {"beta": 2.0},
}
# The reward prefers short words, which are learnt in a few steps.
REWARD = """
def short_words(prompt, response):
    words = response.split()
    return -sum(map(len, words)) / max(1, len(words))
"""


def write_sentiment(folder, encoder, **changes):
    """Write a tiny controlled experiment and what it reads; return its path."""
    (folder / "my_reward.py").write_text(REWARD)
    reviews = str(write_reviews(folder / "reviews.jsonl", 1200))
    task = {
        "data": reviews,
        "train_pairs": 64,
        "dev_pairs": 48,
        "test_prompts": 24,
        "max_prompt_tokens": 30,
        "max_completion_tokens": 12,
        "generate": {"reward": "my_reward:short_words", "prompt_words": 4, "samples": 3},
    }
    shape = {"vocabulary": 300, "hidden": 24, "layers": 2, "heads": 2, "feed_forward": 48, "context": 48}
    optim = {"lr": 3e-3, "optimizer": "adamw", "batch_size": 16}
    experiment = {
        "results": str(folder / "results"),
        "figures": False,
        "model": {"from_scratch": {"data": reviews, **shape, "pretrain": {"warmup_steps": 5}}},
        "encoder": str(encoder),
        "tasks": {"sentiment": task},
        "losses": {"dpo": {"beta": 0.1}},
        "sft": {**optim, "epochs": 0},
        "train": {**optim, "epochs": 4, "keep_at": [0.25, 0.5]},
        "sample": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 12, "batch_size": 64},
        "judge": {"kind": "gold", "reward": "my_reward:short_words"},
        **changes,
    }
    path = folder / "controlled.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory, tiny_encoder):
    """The results folder of a run with every loss of the shipped experiment."""
    folder = tmp_path_factory.mktemp("controlled")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        assert run(write_sentiment(folder, tiny_encoder, losses=LOSSES)) == 0
        yield folder / "results" / "controlled"


def cell_of(folder, loss: str):
    (cell,) = [p.parent for p in folder.glob("cells/*/cell.json") if read_json(p)["loss"] == loss]
    return cell


@pytest.mark.slow
def test_the_sft_policy_is_its_own_baseline_so_it_has_kl_0_and_wins_half(ran):
    frame = pd.read_csv(ran / "leaderboard.csv").set_index("loss")
    assert frame.loc["sft", "win_rate"] == 50 and frame.loc["sft", "kl"] == pytest.approx(0, abs=1e-4)
    rows = read_jsonl(cell_of(ran, "sft") / "measure-sentiment" / "rows.jsonl")
    assert len(rows) == 24 and {row["at"] for row in rows} == {1.0}
    np.testing.assert_allclose([row["kl_exact"] for row in rows], 0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_reward_labels_make_every_loss_s_true_pair_accuracy_rise(ran, loss):
    rows = read_jsonl(cell_of(ran, loss) / "train" / "metrics.jsonl")
    before, *_, after = [row for row in rows if row["split"] == "dev"]
    assert before["accuracy"] == 0.5  # at the start all log-ratios are 0, which counts as ties
    assert after["accuracy"] > 0.5 and after["margin"] > 0


@pytest.mark.slow
def test_policies_are_measured_at_every_kept_point_on_the_same_prompts(ran):
    start = read_jsonl(cell_of(ran, "sft") / "measure-sentiment" / "rows.jsonl")
    rows = pd.DataFrame(read_jsonl(cell_of(ran, "dpo") / "measure-sentiment" / "rows.jsonl"))
    assert rows.groupby("at").size().to_dict() == {0.25: 24, 0.5: 24, 1.0: 24}
    assert all(set(part["id"]) == {row["id"] for row in start} for _, part in rows.groupby("at"))
    kl = rows.groupby("at")["kl_exact"].mean()
    assert 0 < kl[0.25] < kl[1.0]
    judged = read_jsonl(cell_of(ran, "dpo") / "sample-sentiment" / "samples.jsonl")
    assert {row["id"]: row["baseline"] for row in judged} == {row["id"]: row["response"] for row in start}
    assert [row["response"] for row in judged] == rows[rows["at"] == 1.0]["response"].tolist()


@pytest.mark.slow
def test_the_reward_in_the_rows_is_the_reward_and_training_raises_it(ran):
    rows = {loss: read_jsonl(cell_of(ran, loss) / "measure-sentiment" / "rows.jsonl") for loss in ("sft", "dpo")}
    for row in rows["sft"]:
        words = row["response"].split()
        assert row["reward"] == -sum(map(len, words)) / max(1, len(words))
    mean = {loss: np.mean([r["reward"] for r in measured if r["at"] == 1.0]) for loss, measured in rows.items()}
    assert mean["dpo"] > mean["sft"]


@pytest.mark.slow
def test_two_tasks_of_one_start_share_what_is_drawn_and_have_a_row_of_sft_each(tmp_path, tiny_encoder, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    path = write_sentiment(tmp_path, tiny_encoder)
    experiment = yaml.safe_load(path.read_text())
    task = experiment["tasks"]["sentiment"]
    noisy = {**task, "kind": "sentiment", "losses": ["ipo"], "generate": {**task["generate"], "flip": 0.2}}
    experiment |= {"tasks": {"sentiment": {**task, "losses": ["dpo"]}, "noisy": noisy}}
    experiment |= {"losses": {"dpo": {"beta": 0.1}, "ipo": {"tau": 0.1}}}
    path.write_text(yaml.safe_dump(experiment))
    assert run(path) == 0
    assert len(list((tmp_path / "results" / "store" / "completions").glob("*/artifact.json"))) == 1
    frame = pd.read_csv(tmp_path / "results" / "controlled" / "leaderboard.csv")
    assert sorted(zip(frame["task"], frame["loss"], strict=True)) == [
        ("noisy", "ipo"),
        ("noisy", "sft"),
        ("sentiment", "dpo"),
        ("sentiment", "sft"),
    ]
    assert (frame["status"] == "ok").all() and frame["reward"].notna().all()
    assert len(pd.read_csv(tmp_path / "results" / "controlled" / "frontier.csv")) == 2


@pytest.mark.slow
def test_the_same_seeds_give_the_same_numbers(tmp_path, tiny_encoder, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    measured = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        path = write_sentiment(folder, tiny_encoder, plugins=[])
        (tmp_path / "my_reward.py").write_text(REWARD)
        assert run(path) == 0
        cells = sorted((folder / "results" / "controlled" / "cells").iterdir())
        measured.append({c.name: (c / "measure-sentiment" / "rows.jsonl").read_text() for c in cells if c.is_dir()})
    assert measured[0] == measured[1] and len(measured[0]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": {"temperature": 0.7}}, "set sample.temperature=1 and sample.top_p=1"),
        ({"tasks": {"sentiment": {"losses": ["dpoo"]}}}, "'dpoo' is no loss of this experiment; did you mean 'dpo'"),
        ({"tasks": {"hh": {"generate": {}}}}, "tasks.hh.generate: hh has preferences of its own"),
        ({"tasks": {"sentiment": {"generate": {"reward": "nope"}}}}, "reward 'nope' is neither registered nor"),
        ({"tasks": {"sentiment": {"generate": {"flip": 0.5}}}}, "flip must be at least 0 and below 0.5"),
        ({"tasks": {"sentiment": {"generate": {"samples": 1}}}}, "generate.samples must be at least 2"),
        ({"train": {"keep_at": [1.0]}}, "train.keep_at must be above 0 and below 1, got 1.0"),
        ({"tasks": {"sentiment": {"generate": {"labels": "unpaired"}}}}, "'dpo' needs pairs, and the data of task"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_trained(tmp_path, tiny_model, change, message, capsys):
    base = {
        "results": str(tmp_path / "results"),
        "model": {"name": str(tiny_model)},
        "encoder": str(tiny_model),
        "tasks": {"sentiment": {"data": str(write_reviews(tmp_path / "r.jsonl"))}},
        "losses": {"dpo": {}},
        "sample": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8},
    }
    for section, values in change.items():
        for key, value in values.items():
            inner = base.setdefault(section, {}).setdefault(key, {})
            base[section][key] = {**inner, **value} if isinstance(value, dict) else value
    path = tmp_path / "wrong.yaml"
    path.write_text(json.dumps(base))
    assert main(["run", str(path), "judge={kind: gold, reward: imdb_sentiment}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
