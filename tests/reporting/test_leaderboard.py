"""The numbers of the leaderboard, derived by hand from the preferences in `results_folder.write_example`."""

import math

import pytest

from harness.core.errors import UserError
from harness.core.records import Failure
from harness.reporting.leaderboard import COLUMNS, build_leaderboard
from harness.reporting.results import load_results
from tests.conftest import REPOSITORY
from tests.reporting.results_folder import (
    plan_cell,
    write_cell,
    write_failures,
    write_judgements,
    write_plan,
    write_samples,
)


def row(leaderboard, task, loss):
    (index,) = leaderboard.index[(leaderboard["task"] == task) & (leaderboard["loss"] == loss)]
    return leaderboard.loc[index]


def test_every_column_is_documented_and_in_the_documented_order(leaderboard):
    assert list(leaderboard.columns) == list(COLUMNS)


def test_there_is_a_row_for_everything_that_the_plan_asks_for(leaderboard):
    """There are four rows per task, in the experiment's order of tasks. Rows that failed or did not run come last."""
    assert leaderboard[["task", "loss"]].values.tolist() == [
        ["hh", "dpo"],
        ["hh", "rpo_paired"],
        ["hh", "sft"],
        ["hh", "ipo"],
        ["tldr", "ipo"],
        ["tldr", "sft"],
        ["tldr", "dpo"],
        ["tldr", "rpo_paired"],
        ["alpaca_eval", "sft"],
        ["alpaca_eval", "dpo"],
        ["alpaca_eval", "rpo_paired"],
        ["alpaca_eval", "ipo"],
    ]


def test_the_win_rate_is_the_mean_preference_over_prompts_and_seeds(leaderboard):
    """dpo: (1 + 1 + 1 + 0.5) + (1 + 0 + 1 + 0.5) = 6 of 8; the SFT policy: 1.5 + 1.5 = 3 of 8."""
    assert row(leaderboard, "hh", "dpo")[["win_rate", "n", "coverage", "status"]].tolist() == [75.0, 8, 1.0, "ok"]
    assert row(leaderboard, "hh", "sft")["win_rate"] == 37.5


def test_a_missing_judgement_is_not_a_loss(leaderboard):
    """rpo_paired won 2 of 4, then 1 of 2 that were judged: 3 of 6. As losses, the missing ones would make it 3 of 8."""
    entry = row(leaderboard, "hh", "rpo_paired")
    assert entry["win_rate"] == 50.0
    assert (entry["n"], entry["coverage"], entry["status"]) == (6, 0.75, "incomplete")


def test_the_interval_holds_the_win_rate(leaderboard):
    judged = leaderboard.dropna(subset=["win_rate"])
    assert (judged["win_rate_low"] < judged["win_rate"]).all()
    assert (judged["win_rate"] <= judged["win_rate_high"]).all()


def test_ranks_go_to_complete_rows_alone_and_are_shared_by_equals(leaderboard):
    """hh: dpo 75, SFT 37.5 (ipo and rpo_paired are not complete). tldr: ipo 75, SFT and dpo both 50."""
    ranks = {(r.task, r.loss): r.rank for r in leaderboard.dropna(subset=["rank"]).itertuples()}
    assert ranks == {
        ("hh", "dpo"): 1,
        ("hh", "sft"): 2,
        ("tldr", "ipo"): 1,
        ("tldr", "sft"): 2,
        ("tldr", "dpo"): 2,
        ("alpaca_eval", "sft"): 1,
        ("alpaca_eval", "dpo"): 1,
        ("alpaca_eval", "rpo_paired"): 1,
    }


def test_the_difference_to_sft_is_paired_on_prompts(leaderboard):
    """dpo: 75 - 37.5. On alpaca_eval the preferences agree on every prompt, so difference and interval are 0."""
    assert row(leaderboard, "hh", "dpo")["vs_sft"] == 37.5
    assert row(leaderboard, "hh", "rpo_paired")["vs_sft"] == 12.5
    assert row(leaderboard, "alpaca_eval", "dpo")[["vs_sft", "vs_sft_low", "vs_sft_high"]].tolist() == [0, 0, 0]
    assert math.isnan(row(leaderboard, "hh", "sft")["vs_sft"])


def test_kl_is_the_mean_of_the_log_ratios_and_its_error_that_of_the_prompts(leaderboard):
    """dpo: seeds (1, 2, 3, 4) and (3, 4, 5, 6), so per prompt (2, 3, 4, 5): mean 3.5, standard error sqrt(5/3) / 2."""
    entry = row(leaderboard, "hh", "dpo")
    assert entry["kl"] == 3.5
    assert entry["kl_se"] == pytest.approx(math.sqrt(5 / 3) / 2)
    assert row(leaderboard, "hh", "sft")["kl"] == 0


def test_lengths_flips_and_finished_responses(leaderboard):
    """The four responses have 10, 11, 12 and 13 tokens. The first one is cut off, and its verdict flipped."""
    entry = row(leaderboard, "hh", "dpo")
    assert entry[["mean_tokens", "mean_characters", "baseline_characters"]].tolist() == [11.5, 100, 80]
    assert entry[["finished", "flip_rate"]].tolist() == [0.75, 0.25]
    assert row(leaderboard, "hh", "rpo_paired")["flip_rate"] == pytest.approx(1 / 6)  # two verdicts are missing


def test_a_row_says_what_it_took_to_train_and_where_it_is(leaderboard):
    entry = row(leaderboard, "alpaca_eval", "dpo")
    assert entry[["trained_on", "settings", "reduction", "data"]].tolist() == ["hh", "beta=0.1", "sum", "paired"]
    assert entry[["examples", "tokens", "steps", "forward_passes"]].tolist() == [32, 1000, 4, 64]
    assert entry[["train_seconds", "dev_accuracy", "dev_margin"]].tolist() == [12.5, 0.6, 2.0]
    assert entry[["seeds", "cells"]].tolist() == ["0 1", "hh-dpo-0.1-0 hh-dpo-0.1-1"]


def test_the_judge_and_its_agreement_stand_beside_the_number(leaderboard):
    entry = row(leaderboard, "hh", "ipo")  # one of its two cells was never judged
    names = ["judge", "judge_agreement", "judge_agreement_low", "judge_agreement_high", "judge_agreement_n"]
    assert entry[names].tolist() == ["preference_model-1a2b3c", 0.64, 0.6, 0.68, 500]
    assert entry[["judge_agreement_labels", "baseline"]].tolist() == ["human choices", "the chosen response"]


def test_a_failed_cell_is_told_and_what_there_is_of_the_row_is_kept(leaderboard):
    entry = row(leaderboard, "hh", "ipo")
    assert entry["status"] == "failed: seed 0, train: ValueError: the loss became nan | <b>step 3</b> more"
    assert (entry["win_rate"], entry["coverage"]) == (100.0, 0.5)


def test_what_has_not_run_has_no_numbers(leaderboard):
    entry = row(leaderboard, "tldr", "rpo_paired")
    assert (entry["status"], entry["n"], entry["coverage"]) == ("not run yet", 0, 0)
    assert entry[["win_rate", "vs_sft", "kl", "mean_tokens", "steps"]].isna().all()


def test_one_cause_at_several_seeds_is_told_once(tmp_path):
    cells = [plan_cell("dpo", {"beta": 0.1}, seed) for seed in (0, 1, 2)]
    folder = write_plan(tmp_path / "run", cells)
    for cell, reason in zip(cells, ["out of memory", "out of memory", "no space left"], strict=True):
        write_failures(folder, cell, Failure("train", reason))
    entry = build_leaderboard(load_results(folder)).iloc[0]
    assert entry["status"] == "failed: seeds 0 1, train: out of memory; seed 2, train: no space left"
    assert (entry["n"], entry["coverage"]) == (0, 0)


def test_a_table_of_two_judges_is_refused(tmp_path):
    """Two judges have two scales. The message names both and their cells."""
    cells = [plan_cell("dpo", {"beta": 0.1}, seed) for seed in (0, 1)]
    folder = write_plan(tmp_path / "run", cells)
    for cell, judge in zip(cells, ("openai-a", "openai-b"), strict=True):
        write_cell(folder, cell, {"hh": [1, 0]}, judge=judge)
    with pytest.raises(UserError, match=r"hh mix judges.*'openai-a' judged cells hh-dpo-0.1-0.*'openai-b'"):
        build_leaderboard(load_results(folder))


def test_tasks_may_have_judges_of_their_own(tmp_path):
    cell = plan_cell("dpo", {"beta": 0.1}, 0, evaluated_on=("hh", "alpaca_eval"))
    folder = write_plan(tmp_path / "run", [cell])
    write_cell(folder, cell, {"hh": [1, 0], "alpaca_eval": [1, 0]})
    write_judgements(folder, cell, "alpaca_eval", [1, 0], [1.0, 1.0], judge="another")
    assert build_leaderboard(load_results(folder))["judge"].tolist() == ["preference_model-1a2b3c", "another"]


def test_settings_of_one_loss_are_rows_of_their_own(tmp_path):
    cells = [plan_cell("dpo", {"beta": beta}, 0) for beta in (0.1, 0.3)]
    folder = write_plan(tmp_path / "run", cells)
    for cell, verdicts in zip(cells, ([1, 0], [1, 1]), strict=True):
        write_cell(folder, cell, {"hh": verdicts})
    frame = build_leaderboard(load_results(folder))
    assert frame[["settings", "win_rate", "rank"]].values.tolist() == [["beta=0.3", 100, 1], ["beta=0.1", 50, 2]]


def test_what_differs_by_the_noise_of_arithmetic_shares_a_rank_and_keeps_the_plan_s_order(tmp_path):
    cells = [plan_cell("dpo", {"beta": beta}, 0) for beta in (0.1, 0.3)]
    folder = write_plan(tmp_path / "run", cells)
    for cell, verdicts in zip(cells, ([0.5, 0.7], [0.5, 0.7 + 1e-12]), strict=True):
        write_cell(folder, cell, {"hh": verdicts})
    frame = build_leaderboard(load_results(folder))
    assert frame[["settings", "rank"]].values.tolist() == [["beta=0.1", 1], ["beta=0.3", 1]]


def test_a_sampled_cell_that_awaits_its_judge_has_lengths_but_no_win_rate(tmp_path):
    cell = plan_cell("dpo", {"beta": 0.1}, 0)
    folder = write_plan(tmp_path / "run", [cell])
    write_samples(folder, cell, "hh", [1.0, 3.0])
    entry = build_leaderboard(load_results(folder)).iloc[0]
    assert (entry["status"], entry["coverage"], entry["mean_tokens"], entry["kl"]) == ("incomplete", 0, 10.5, 2)
    assert math.isnan(entry["win_rate"])


def test_every_column_is_explained_in_the_results_readme():
    page = (REPOSITORY / "results" / "README.md").read_text(encoding="utf-8")
    for name, meaning in COLUMNS.items():
        assert f"| `{name}` | {meaning} |" in page, name
