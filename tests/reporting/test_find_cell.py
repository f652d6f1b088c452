"""A cell by its key, the beginning of one, or its label; what fits none or several is an error that helps."""

import shutil

import pytest

from harness.core.errors import UserError
from harness.reporting.find_cell import find_cell
from tests.reporting.results_folder import plan_cell, write_plan


def test_by_key_by_the_beginning_of_one_and_by_what_the_leaderboard_prints(example):
    results = example.parent
    for text in ("hh-dpo-0.1-1", "hh-dpo-0.1-1"[:-1] + "1", "hh/dpo/beta=0.1/1"):
        assert find_cell(text, results).key == "hh-dpo-0.1-1"
    assert find_cell("tldr-dpo-0.1-0", results).label == "tldr/dpo/beta=0.1/0"
    assert find_cell("tldr/rpo_paired/beta=0.1 temperature=0.5/1", results).seed == 1
    assert find_cell("hh/sft/-/0", results).settings == ""


def test_an_exact_key_wins_over_keys_that_begin_with_it(tmp_path):
    write_plan(tmp_path / "one", [{**plan_cell("sft", {}, 0), "key": key} for key in ("ab", "abc")])
    assert find_cell("ab", tmp_path).key == "ab"
    with pytest.raises(UserError, match="'a' fits 2 cells: ab = hh/sft/-/0 of one; abc"):
        find_cell("a", tmp_path)


def test_the_last_parts_of_a_label_may_be_left_out_where_one_cell_fits(tmp_path):
    write_plan(tmp_path / "one", [plan_cell("sft", {}, 0), plan_cell("dpo", {"beta": 0.1}, 0)])
    assert find_cell("hh/dpo", tmp_path).loss == "dpo"
    with pytest.raises(UserError, match="fits 2 cells"):
        find_cell("hh", tmp_path)
    with pytest.raises(UserError, match=r"no cell 'hh/dp' in .*; did you mean 'hh/dpo'"):
        find_cell("hh/dp", tmp_path)


def test_an_unknown_one_names_the_nearest(example):
    with pytest.raises(UserError, match=r"no cell 'hh/dpo/beta=0.2/1' in .*; did you mean 'hh/dpo/beta=0.1/1'"):
        find_cell("hh/dpo/beta=0.2/1", example.parent)
    with pytest.raises(UserError, match=r"did you mean 'hh-dpo-0.1-0'"):
        find_cell("hh-dpo-0.3-0", example.parent)
    with pytest.raises(UserError, match="no cell '' in"):
        find_cell("", example.parent)


def test_a_cell_of_several_experiments_is_told_by_the_experiment(example, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(example, tmp_path / name)
    with pytest.raises(UserError, match=r"in several experiments \(one, two\); say which with --experiment"):
        find_cell("hh-dpo-0.1-1", tmp_path)
    assert find_cell("hh-dpo-0.1-1", tmp_path, "two").experiment.name == "two"
    with pytest.raises(UserError, match=r"no experiment 'twoo' in .*did you mean 'two'"):
        find_cell("hh-dpo-0.1-1", tmp_path, "twoo")


def test_a_cell_that_the_plan_no_longer_asks_for_is_still_there(example, tmp_path):
    shutil.copytree(example, tmp_path / "one")
    write_plan(tmp_path / "one", [plan_cell("sft", {}, 0)])
    assert find_cell("hh-dpo-0.1-1", tmp_path).loss == "dpo"


def test_where_nothing_is(tmp_path):
    with pytest.raises(UserError, match="no cells in"):
        find_cell("a", tmp_path)
    with pytest.raises(UserError, match=r"no folder .*--results"):
        find_cell("a", tmp_path / "nowhere")
