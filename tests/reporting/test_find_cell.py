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


@pytest.fixture
def sentiment(tmp_path):
    """Results of two tasks with two losses, whose settings look alike."""
    cells = [plan_cell("dpo", {"beta": beta}, seed, "sentiment") for beta in (1.0, 2.5) for seed in range(6)]
    cells += [
        plan_cell("simpo", {"beta": beta, "gamma": 0.5}, 0, task)
        for beta in (2.0, 4)
        for task in ("noisy", "sentiment")
    ]
    write_plan(tmp_path / "one", cells)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("sentiment/simpo/beta=2.5", "'sentiment/simpo/beta=2.0 gamma=0.5'"),
        ("sentiment/simpo/beta=2 gamma=0.5/7", "'sentiment/simpo/beta=2.0 gamma=0.5/0'"),
        ("sentimnt/simpoo", "'sentiment/simpo'"),
        ("sentimnt", "'sentiment'"),
        ("dpo", "'sentiment/dpo'"),
        ("simpo", "'sentiment/simpo' or 'noisy/simpo'"),
        ("simppo", "'noisy/simpo' or 'sentiment/simpo'"),
        ("dpo/beta=1", "'sentiment/dpo/beta=1'"),
        ("sentiment-dpo-3.0-0", "'sentiment-dpo-1.0-0'"),
    ],
)
def test_a_suggestion_keeps_the_task_and_the_loss_that_were_named(sentiment, text, meant):
    with pytest.raises(UserError, match="no cell") as refused:
        find_cell(text, sentiment)
    assert str(refused.value).endswith(f"; did you mean {meant}?")


def test_a_name_that_is_near_nothing_gets_an_example(sentiment):
    with pytest.raises(UserError, match="there are 16, such as sentiment-dpo-1"):
        find_cell("sentiment/zzzz", sentiment)


def test_numbers_may_be_written_otherwise(sentiment):
    assert find_cell("sentiment/dpo/beta=1/0", sentiment).key == "sentiment-dpo-1.0-0"
    assert find_cell("noisy/simpo/beta=4.0 gamma=0.50", sentiment).settings == "beta=4 gamma=0.5"


def test_of_many_cells_that_fit_ten_are_listed_in_one_line(sentiment):
    with pytest.raises(UserError, match="'sentiment/dpo' fits 12 cells: ") as refused:
        find_cell("sentiment/dpo", sentiment)
    said = str(refused.value)
    assert said.count(" of one") == 10 and said.endswith("; and 2 more") and "\n" not in said


def test_a_folder_of_shipped_tables_is_said_to_hold_no_cells(sentiment):
    (sentiment / "shipped").mkdir()
    (sentiment / "shipped" / "leaderboard.csv").touch()
    with pytest.raises(UserError, match=r"shipped holds only tables, no cells; a run of the experiment makes them"):
        find_cell("hh/dpo", sentiment, "shipped")


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


def test_damage_elsewhere_hides_no_cell_and_is_told_where_none_is_found(example, tmp_path):
    shutil.copytree(example, tmp_path / "one")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "plan.json").write_text("{")
    left = tmp_path / "one" / "cells" / "of-an-earlier-plan"
    left.mkdir()
    (left / "cell.json").write_text("[]")
    with pytest.warns(UserWarning, match=r"of-an-earlier-plan/cell\.json: expected the fields of a CellRecord"):
        assert find_cell("hh/dpo/beta=0.1/1", tmp_path).key == "hh-dpo-0.1-1"
    with pytest.raises(UserError, match=r"two/plan\.json: cannot be read"), pytest.warns(UserWarning):
        find_cell("hh/ipo/tau=7/1", tmp_path)
