"""Length-controlled win rates on the leaderboard, from results folders with responses of known lengths."""

import json
import math

import numpy as np
import pytest

from harness.core.errors import UserError
from harness.evaluation.alpaca_eval.difficulty import DIFFICULTY, difficulty_table
from harness.evaluation.alpaca_eval.metrics import length_controlled_win_rate, read_annotations
from harness.evaluation.statistics.length_control import joint_difficulty, length_controlled
from harness.reporting.leaderboard import build_leaderboard
from harness.reporting.results import load_results
from harness.reporting.tables import markdown
from tests.conftest import REPOSITORY
from tests.reporting.results_folder import (
    DECODING,
    plan_cell,
    replace_samples,
    write_cell,
    write_json,
    write_jsonl,
    write_plan,
)

PUBLISHED = REPOSITORY / "tests/evaluation/data/alpaca_eval/vicuna-7b.csv.gz"


def write_policy(folder, loss, preferences, lengths, *, seed=0, task="hh", baselines=80):
    """Write a judged cell. Response i has lengths[i] characters, and its baseline has baselines[i]."""
    cell = plan_cell(loss, {} if loss == "sft" else {"beta": 0.1}, seed, evaluated_on=(task,))
    write_cell(folder, cell, {task: [p if isinstance(p, str) else float(p) for p in preferences]})
    path = folder / "cells" / cell["key"] / f"sample-{task}" / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row, length, baseline in zip(rows, lengths, np.broadcast_to(baselines, len(rows)), strict=True):
        row |= {"response": "r" * int(length), "baseline": "b" * int(baseline)}
    replace_samples(folder, cell, task, rows)
    return cell


def board(folder, *cells):
    frame = build_leaderboard(load_results(write_plan(folder, list(cells))))
    return frame.set_index("loss")


@pytest.fixture
def alpaca_eval(tmp_path):
    """Return a folder, a cell in it that is judged on all of AlpacaEval like a published model, and its judgements."""
    published = read_annotations(PUBLISHED)
    preferences = list(published.preference - 1)
    cell = write_policy(
        tmp_path, "dpo", preferences, published.model_length, task="alpaca_eval", baselines=published.reference_length
    )
    judged = tmp_path / "cells" / cell["key"] / "judge-alpaca_eval"
    index = {f"alpaca_eval-{i}": i for i in range(805)}
    write_json(judged / DIFFICULTY, difficulty_table("estimated").to_json(index))
    return tmp_path, cell, judged


def test_a_policy_that_wins_by_length_loses_its_advantage(tmp_path):
    """Two policies have the same quality. One is longer by 300 characters on average, and the judge prefers length."""
    rng = np.random.default_rng(0)
    lengths = {"sft": rng.integers(400, 1200, 400), "dpo": rng.integers(700, 1500, 400)}
    odds = {loss: (length - 800) / 200 for loss, length in lengths.items()}
    cells = [
        write_policy(
            tmp_path, loss, (rng.random(400) < 1 / (1 + np.exp(-odds[loss]))).astype(int), lengths[loss], baselines=800
        )
        for loss in lengths
    ]
    table = board(tmp_path, *cells)
    assert table.loc["dpo", "win_rate"] > table.loc["sft", "win_rate"] + 20
    for loss in lengths:
        assert table.loc[loss, "lc_win_rate_low"] < 50 < table.loc[loss, "lc_win_rate_high"]
        assert table.loc[loss, "lc_difficulty"] == "fitted"


def test_the_difficulties_are_fitted_to_all_policies_of_the_table(tmp_path):
    rng = np.random.default_rng(1)
    preferences, lengths = rng.integers(0, 2, (2, 30)), rng.integers(50, 150, (2, 30))
    cells = [write_policy(tmp_path, loss, preferences[i], lengths[i]) for i, loss in enumerate(("sft", "dpo"))]
    order = sorted(range(30), key=lambda i: f"hh-{i}")  # the leaderboard's order of the prompts
    difficulty = joint_difficulty(preferences[:, order].astype(float), 80 - lengths[:, order])
    expected, resampled = length_controlled(preferences[1, order].astype(float), 80 - lengths[1, order], difficulty)
    dpo = board(tmp_path, *cells).loc["dpo"]
    assert dpo["lc_win_rate"] == pytest.approx(100 * expected)
    assert dpo["lc_win_rate_low"] == pytest.approx(100 * np.quantile(resampled, 0.025))


def test_seeds_are_averaged(tmp_path):
    rng = np.random.default_rng(2)
    preferences, lengths = rng.integers(0, 2, (3, 40)), rng.integers(50, 150, (3, 40))
    policies = (("sft", 0), ("dpo", 0), ("dpo", 1))
    cells = [write_policy(tmp_path, loss, preferences[i], lengths[i], seed=s) for i, (loss, s) in enumerate(policies)]
    difficulty = joint_difficulty(preferences.astype(float), 80 - lengths)
    rates = [length_controlled(preferences[i].astype(float), 80 - lengths[i], difficulty)[0] for i in (1, 2)]
    dpo = board(tmp_path, *cells).loc["dpo"]
    assert dpo["lc_win_rate"] == pytest.approx(100 * np.mean(rates), abs=1e-3)
    assert dpo["lc_win_rate_low"] < dpo["lc_win_rate"] < dpo["lc_win_rate_high"]


def test_an_incomplete_row_is_controlled_over_what_was_judged(tmp_path):
    """Failed judgements are left out. Length has no effect here, so the rate is close to the win rate of the rest."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(50, 150, 200)
    wins = np.where(np.arange(200) % 2, 1, 0)
    some = ["failed" if i < 50 else int(win) for i, win in enumerate(wins)]
    cells = [write_policy(tmp_path, "sft", wins, lengths), write_policy(tmp_path, "dpo", some, lengths)]
    dpo = board(tmp_path, *cells).loc["dpo"]
    assert dpo["status"] == "incomplete" and dpo["win_rate"] == 50
    assert dpo["lc_win_rate"] == pytest.approx(50, abs=1.5)


def test_where_all_lengths_differ_by_the_same_there_is_no_such_rate(leaderboard):
    """In the example every response is 20 characters longer than its baseline, so the effect of length is unknown."""
    assert leaderboard["lc_win_rate"].isna().all() and (leaderboard["lc_difficulty"] == "").all()


@pytest.mark.slow
def test_alpaca_eval_with_the_judge_s_table_is_upstream_s_model(alpaca_eval):
    folder, cell, _ = alpaca_eval
    dpo = board(folder, cell).loc["dpo"]
    expected, _ = length_controlled_win_rate(read_annotations(PUBLISHED), difficulty_table("estimated"))
    assert dpo["lc_win_rate"] == pytest.approx(expected.value, abs=1e-6)
    assert dpo["lc_win_rate_low"] == pytest.approx(expected.low, abs=1e-6)
    assert dpo["lc_difficulty"] == "estimated"
    assert dpo["win_rate_se"] == pytest.approx(0.61351, abs=1e-5), "the published standard error"
    page = markdown(build_leaderboard(load_results(folder)), "alpaca", DECODING)
    assert "AlpacaEval's model with the packaged estimate of its difficulties" in page


def test_one_missing_judgement_of_the_805_leaves_no_such_rate(alpaca_eval):
    folder, cell, judged = alpaca_eval
    rows = [json.loads(line) for line in (judged / "judgements.jsonl").read_text().splitlines()]
    rows[7] |= {"status": "failed", "preference": None}
    write_jsonl(judged / "judgements.jsonl", rows)
    dpo = board(folder, cell).loc["dpo"]
    assert math.isnan(dpo["lc_win_rate"]) and dpo["lc_difficulty"] == "" and dpo["n"] == 804


def test_a_part_of_the_instructions_leaves_no_such_rate(alpaca_eval):
    folder, cell, judged = alpaca_eval
    index = {f"alpaca_eval-{i}": i for i in range(804)}
    write_json(judged / DIFFICULTY, difficulty_table("estimated").to_json(index))
    assert math.isnan(board(folder, cell).loc["dpo", "lc_win_rate"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[" * 100_000,
        lambda text: "null",
        lambda text: "[]",
        lambda text: "{}",
        lambda text: json.dumps({**json.loads(text), "anchors": {}}),
        lambda text: json.dumps({**json.loads(text), "anchors": [1]}),
        lambda text: json.dumps({**json.loads(text), "difficulty": json.loads(text)["difficulty"][:9]}),
        lambda text: json.dumps({**json.loads(text), "difficulty": ["hard"] * 805}),
        lambda text: json.dumps({**json.loads(text), "difficulty": [math.nan] * 805}),
        lambda text: json.dumps({**json.loads(text), "index": None}),
        lambda text: json.dumps({**json.loads(text), "index": {"a": "b"}}),
    ],
)
def test_a_damaged_table_of_the_judge_is_said_with_what_to_do(tmp_path, damage):
    cell = write_policy(tmp_path, "dpo", [1, 0], [10, 20])
    file = tmp_path / "cells" / cell["key"] / "judge-hh" / DIFFICULTY
    file.write_text(damage(json.dumps(difficulty_table("estimated").to_json({"hh-0": 0}))))
    with pytest.raises(UserError, match=f"{file}: "):
        board(tmp_path, cell)


def test_the_days_of_the_judgements_stand_beside_the_rate(tmp_path):
    cells = [write_policy(tmp_path, "dpo", [1, 0], [10, 20], seed=seed) for seed in (0, 1)]
    for cell, day in zip(cells, ("2026-11-24T23:59:59Z", "2026-11-25T00:00:01Z"), strict=True):
        path = tmp_path / "cells" / cell["key"] / "judge-hh/artifact.json"
        write_json(path, {**json.loads(path.read_text()), "created": day})
    assert board(tmp_path, *cells).loc["dpo", "judge_date"] == "2026-11-24 2026-11-25"
