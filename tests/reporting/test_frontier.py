"""Reports where the reward is known: rows of reward and KL, their columns, the frontier's table, page and figure."""

import math

import pandas as pd
import pytest

from harness.core.errors import UserError
from harness.reporting.frontier import frontier_figure, frontier_page, frontier_table
from harness.reporting.leaderboard import COLUMNS
from harness.reporting.measures import distinct, load_measures
from harness.reporting.report import write_report
from harness.reporting.results import load_results
from harness.reporting.style import styles
from tests.reporting.results_folder import (
    plan_cell,
    samples_hash,
    write_cell,
    write_json,
    write_jsonl,
    write_plan,
)

PROMPTS, SEEDS = 5, (0, 1)
# (loss, settings): (share of training, mean reward, KL) of each kept policy.
POLICIES = {
    ("sft", ""): [(1.0, 0.5, 0.0)],
    ("dpo", 0.1): [(0.5, 0.6, 1.0), (1.0, 0.8, 4.0)],
    ("dpo", 1.0): [(0.5, 0.52, 0.5), (1.0, 0.55, 1.0)],
    ("ipo", 0.3): [(0.5, 0.5, 0.1), (1.0, 0.7, 1.0)],
}


def write_measures(folder, cell, points, *, samples: str) -> None:
    path = folder / "cells" / cell["key"] / "measure-sentiment"
    rows = [
        {
            "at": at,
            "id": f"sentiment-{i}",
            "response": "good good film" if i else "a bad film",
            "tokens": 10,
            "finished": False,
            "reward": reward + 0.01 * (i - 2),  # prompts differ, and their mean is the policy's
            "kl": kl,
            "kl_exact": kl,
            "entropy": 30.0,
            "reference_logp": -40.0,
        }
        for at, reward, kl in points
        for i in range(PROMPTS)
    ]
    write_jsonl(path / "rows.jsonl", rows)
    write_json(path / "artifact.json", {"inputs": {"samples": samples}, "files": {}})


@pytest.fixture
def folder(tmp_path):
    """Two seeds of two losses on the sentiment task."""
    folder, cells = tmp_path / "controlled", []
    for (loss, value), points in POLICIES.items():
        for seed in SEEDS:
            settings = {} if loss == "sft" else {"beta" if loss == "dpo" else "tau": value}
            cell = plan_cell(loss, settings, seed, "sentiment", ("sentiment",))
            cells.append(cell)
            write_cell(folder, cell, {"sentiment": [0.5] * PROMPTS}, [1.0] * PROMPTS)
            write_measures(folder, cell, points, samples=samples_hash("sentiment", [1.0] * PROMPTS))
    return write_plan(folder, cells)


def test_a_method_is_a_loss_with_all_its_strengths(folder):
    measures = load_measures(folder)
    assert len(measures) == len(SEEDS) * PROMPTS * (1 + 2 + 2 + 2)
    assert set(measures["method"]) == {"sft", "dpo", "ipo"}


def test_other_settings_than_the_strength_make_methods_of_their_own(tmp_path):
    cells = []
    for temperature in (0.1, 0.5):
        for beta in (1.0, 3.0):
            cell = plan_cell("rpo_paired", {"beta": beta, "temperature": temperature}, 0, "sentiment", ("sentiment",))
            cells.append(cell)
            write_cell(tmp_path, cell, {"sentiment": [0.5] * PROMPTS}, [1.0] * PROMPTS)
            write_measures(tmp_path, cell, [(1.0, 0.6, 1.0)], samples=samples_hash("sentiment", [1.0] * PROMPTS))
    write_plan(tmp_path, cells)
    assert set(load_measures(tmp_path)["method"]) == {"rpo_paired temperature=0.1", "rpo_paired temperature=0.5"}


def test_the_table_holds_what_the_envelopes_reach(folder):
    table = frontier_table(load_measures(folder)).set_index("method")
    assert list(table.index) == ["dpo", "ipo"]
    assert table.loc["dpo", ["policies", "seeds", "prompts"]].tolist() == [4, 2, 5]
    assert (table["common_budget"] == 1.0).all()
    # dpo: (0, 0.5) - (1, 0.6) - (4, 0.8); its stronger setting lies below that.
    assert table.loc["dpo", "reward_at_kl_0.5"] == pytest.approx(0.55)
    assert table.loc["dpo", "reward_at_kl_2"] == pytest.approx(0.6 + 0.2 / 3)
    assert table.loc["dpo", "reward_at_kl_4"] == pytest.approx(0.8)
    # ipo: (0, 0.5) - (1, 0.7), and no policy beyond.
    assert table.loc["ipo", "reward_at_kl_0.5"] == pytest.approx(0.6)
    assert math.isnan(table.loc["ipo", "reward_at_kl_2"])
    assert table.loc["ipo", "frontier_area"] == pytest.approx(0.1)
    assert table.loc["ipo", "frontier_area_difference"] == pytest.approx(0.05)


def test_measurements_of_samples_that_are_gone_are_left_out(folder):
    (cell,) = folder.glob("cells/*ipo*-1")
    artifact = cell / "measure-sentiment" / "artifact.json"
    write_json(artifact, {"inputs": {"samples": "of another run"}, "files": {}})
    table = frontier_table(load_measures(folder))
    assert list(table["method"]) == ["dpo"]  # ipo was not measured on both seeds


def test_a_damaged_file_is_named(folder):
    rows = next(folder.glob("cells/*dpo*")) / "measure-sentiment" / "rows.jsonl"
    rows.write_text("{")
    with pytest.raises(UserError, match=r"measure-sentiment/rows\.jsonl: cannot be read"):
        load_measures(folder)


@pytest.mark.slow
def test_the_report_has_the_frontier_and_the_leaderboard_its_columns(folder):
    frame = write_report(folder).set_index(["loss", "settings"])
    row = frame.loc["dpo", "beta=0.1"]
    assert row["reward"] == pytest.approx(0.8) and row["kl_exact"] == pytest.approx(4.0)
    assert row["entropy"] == pytest.approx(3.0) and row["reference_perplexity"] == pytest.approx(math.exp(4))
    assert row["reward_at_kl_1"] == pytest.approx(0.6) and row["frontier_area"] == pytest.approx(0.05)
    # "good good film" four times and "a bad film": 4 different words of 15, 4 different pairs of 10.
    assert row["distinct_1"] == pytest.approx(4 / 15) and row["distinct_2"] == pytest.approx(4 / 10)
    assert math.isnan(frame.loc[("sft", ""), "frontier_area"].item() if ("sft", "") in frame.index else math.nan)
    assert list(pd.read_csv(folder / "leaderboard.csv").columns) == list(COLUMNS)
    assert {"frontier.csv", "frontier.md"} <= {path.name for path in folder.iterdir()}
    assert {"frontier.png", "frontier.pdf"} <= {path.name for path in (folder / "plots").iterdir()}


def test_the_page_shows_the_largest_area_first_and_what_is_not_known_as_a_dash(folder):
    page = frontier_page(frontier_table(load_measures(folder)), "controlled")
    lines = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| ")]
    header, _, first, second = ([cell.strip() for cell in line] for line in lines)
    assert (first[0], second[0]) == ("ipo", "dpo")
    assert first[header.index("KL 2")] == "-"
    assert second[header.index("KL 4")].startswith("0.800")
    assert "KL from 0 to 1.00" in page and "5 prompts and 2 seeds" in page


def test_a_method_looks_as_its_loss_does_in_the_other_figures(folder):
    """That of dpo is left out, so that ipo is the first to be drawn here, and the second of the plan."""
    measures, look = load_measures(folder), styles(load_results(folder).cells)
    (legend,) = frontier_figure(measures[measures["loss"] != "dpo"], look).legends
    (ipo,) = (
        line for line, text in zip(legend.get_lines(), legend.get_texts(), strict=True) if text.get_text() == "ipo"
    )
    style = look["ipo", "tau=0.3"]
    assert (ipo.get_color(), ipo.get_marker(), ipo.get_linestyle()) == (style.colour, style.marker, style.line)


def test_a_frontier_of_an_earlier_run_does_not_stay(tmp_path):
    folder = write_plan(tmp_path / "run", [plan_cell("dpo", {"beta": 0.1}, 0)])
    (folder / "frontier.md").write_text("of an earlier run")
    write_report(folder)
    assert not (folder / "frontier.md").exists()


def test_without_measurements_there_is_no_frontier(example):
    assert load_measures(example).empty and frontier_figure(load_measures(example), {}) is None
    assert not (example / "frontier.md").exists()


@pytest.mark.slow
def test_without_the_sft_policys_measurements_there_is_no_frontier_and_the_report_is_written(folder):
    measures = load_measures(folder)
    assert frontier_table(measures[measures["loss"] != "sft"]).empty
    assert frontier_figure(measures[measures["loss"] != "sft"], {}) is None
    for path in (folder / "cells").glob("*sft*/measure-sentiment/artifact.json"):
        path.unlink()
    assert write_report(folder)["frontier_area"].isna().all()


def test_distinct_counts_runs_of_words():
    assert distinct(["a b a", "a b"], 1) == pytest.approx(2 / 5)
    assert distinct(["a b a", "a b"], 2) == pytest.approx(2 / 3)
    assert math.isnan(distinct(["a"], 2))
