"""AlpacaEval 2.0 in an experiment: all 805 instructions, with upstream's requests and upstream's scores."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest

from harness.evaluation.alpaca_eval.metrics import win_rates
from harness.tasks.sources import read_packaged
from tests.evaluation.fake_openai import FakeOpenAI, Reply, Request
from tests.tiny_experiment import run, write_experiment

KEY = "sk-a-secret-of-this-test"


def sometimes(request: Request) -> Reply:
    """A judge whose probability for the first output is a function of the request's length alone."""
    sure = 0.1 + len(str(request.body["messages"])) % 9 / 10
    return Reply("m", finish_reason="length", tokens=[("m", {"m": math.log(sure), "M": math.log(1 - sure)})])


@pytest.mark.slow
def test_a_run_has_alpaca_eval_s_rates_and_leaves_its_files(tmp_path, tiny_model, tiny_encoder, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    tasks = {
        "hh": {"train_pairs": 24, "dev_pairs": 8, "test_prompts": 4, "judge_pairs": 60, "max_prompt_tokens": 96},
        "alpaca_eval": {"evaluates": ["hh"], "test_prompts": None, "max_prompt_tokens": 64},
    }
    with FakeOpenAI(sometimes) as server:
        alpaca = {"kind": "alpaca_eval", "tasks": ["alpaca_eval"], "base_url": server.url, "key_env": "JUDGE_KEY"}
        judges = {"ours": {"kind": "preference_model", "tasks": ["hh"]}, "alpaca": alpaca}
        sample = {"max_new_tokens": 4, "batch_size": 128}
        path = write_experiment(
            tmp_path, tiny_model, tiny_encoder, losses={"dpo": {}}, tasks=tasks, judges=judges, sample=sample
        )
        assert run(path) == 0
        asked = len(server.requests)
        assert 805 <= asked <= 2 * 805
        assert run(path) == 0 and len(server.requests) == asked, "a second run asks nothing"
    folder = tmp_path / "results" / "tiny"
    frame = pd.read_csv(folder / "leaderboard.csv")
    rows = frame[frame.task == "alpaca_eval"].set_index("loss")
    for loss in ("sft", "dpo"):
        row = rows.loc[loss]
        assert row["judge"].startswith("alpaca_eval:gpt-4-1106-preview:weighted_alpaca_eval_gpt4_turbo@")
        assert (row["n"], row["coverage"], row["lc_difficulty"]) == (805, 1.0, "estimated")
        assert row["lc_win_rate_low"] < row["lc_win_rate"] < row["lc_win_rate_high"]
        cell = folder / "cells" / row["cells"]
        judged = [
            json.loads(line) for line in (cell / "judge-alpaca_eval@alpaca/judgements.jsonl").read_text().splitlines()
        ]
        published = win_rates(pd.Series([row["preference"] for row in judged]).to_numpy() + 1)
        assert row["win_rate"] == pytest.approx(published["win_rate"])
        assert row["win_rate_se"] == pytest.approx(published["standard_error"])
        outputs = json.loads((cell / "sample-alpaca_eval/model_outputs.json").read_text())
        assert {o["instruction"] for o in outputs} == {r.values["instruction"] for r in read_packaged("alpaca_eval")}
        assert {tuple(o) for o in outputs} == {("instruction", "output", "generator")}
    assert (
        "AlpacaEval's model with the packaged estimate of its difficulties" in (folder / "leaderboard.md").read_text()
    )
    written = [p for p in (tmp_path / "results").rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]
    assert written == [], "the key is nowhere"
