"""Several judges of one experiment: each has its own table, and the agreement of their rankings is reported."""

import math

import pytest

from harness.core.records import Failure
from harness.reporting.judge_checks import NO_CHECK, check_file
from harness.reporting.judge_panel import ranking_agreements
from harness.reporting.leaderboard import build_leaderboard
from harness.reporting.report import write_report
from harness.reporting.results import load_results
from tests.reporting.results_folder import (
    plan_cell,
    write_cell,
    write_failures,
    write_json,
    write_judgements,
    write_plan,
    write_samples,
    write_training,
)

VERDICTS = {  # win rates by a: dpo 75, ipo 50, sft 25; by b: dpo 25, ipo 75, sft 0; c has not judged
    "a": {"dpo": [1, 1, 1, 0], "ipo": [1, 1, 0, 0], "sft": [1, 0, 0, 0]},
    "b": {"dpo": [1, 0, 0, 0], "ipo": [1, 1, 1, 0], "sft": [0, 0, 0, 0]},
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "panel"
    cells = [plan_cell(loss, {}, 0) for loss in ("sft", "dpo", "ipo")]
    for cell in cells:
        write_training(folder, cell)
        write_samples(folder, cell, "hh", [0.0] * 4)
        for name, verdicts in VERDICTS.items():
            write_judgements(folder, cell, "hh", verdicts[cell["loss"]], [0.0] * 4, judge=f"judge-{name}", name=name)
    return write_plan(folder, cells, judges={"hh": ["a", "b", "c"]})


def test_each_judge_has_a_table_of_its_own(folder):
    frame = build_leaderboard(load_results(folder))
    rates = {name: dict(zip(rows["loss"], rows["win_rate"], strict=True)) for name, rows in frame.groupby("judge_name")}
    assert rates["a"] == {"dpo": 75.0, "ipo": 50.0, "sft": 25.0}
    assert rates["b"] == {"dpo": 25.0, "ipo": 75.0, "sft": 0.0}
    assert all(math.isnan(rate) for rate in rates["c"].values())
    first = frame[frame["rank"] == 1]
    assert dict(zip(first["judge_name"], first["loss"], strict=True)) == {"a": "dpo", "b": "ipo"}
    assert dict(zip(frame["judge_name"], frame["judge"], strict=True)) == {"a": "judge-a", "b": "judge-b", "c": ""}
    assert frame.loc[frame["judge_name"] == "c", "status"].tolist() == ["incomplete"] * 3


def test_kendalls_tau_of_two_rankings(folder):
    """Judges a and b agree on two of three pairs of policies (dpo over sft, ipo over sft): (2 - 1) / 3."""
    agreements = {
        (pair.judge, pair.other): pair for pair in ranking_agreements(build_leaderboard(load_results(folder)))
    }
    assert agreements["a", "b"].tau == pytest.approx(1 / 3)
    assert agreements["a", "b"].n == 3
    assert math.isnan(agreements["a", "c"].tau) and agreements["a", "c"].n == 0


@pytest.mark.slow
def test_the_page_has_a_table_for_each_judge_and_their_agreement(folder):
    write_report(folder)
    page = (folder / "leaderboard.md").read_text()
    assert "## hh, judged by a\n" in page and "## hh, judged by b\n" in page
    section = page.split("## Do the judges agree?")[1]
    assert "0.33" in section.split("a and b")[1].split("\n")[0]
    assert page.count("## Training") == 1 and page.split("## Training")[1].count("| dpo") == 1


def test_one_judge_needs_no_section_and_no_name(tmp_path):
    cell = plan_cell("dpo", {}, 0)
    write_cell(tmp_path / "run", cell, {"hh": [1, 0]})
    write_report(write_plan(tmp_path / "run", [cell]), figures=False)
    page = (tmp_path / "run" / "leaderboard.md").read_text()
    assert "Do the judges agree" not in page and "judged by" not in page


def test_a_judge_that_failed_fails_its_own_table_alone(folder):
    cell = plan_cell("dpo", {}, 0)
    write_failures(folder, cell, Failure("judge", "no", "hh", "c"))
    states = load_results(folder).evaluations.query("loss == 'dpo'").set_index("judge_name")["state"]
    assert states.to_dict() == {"a": "done", "b": "done", "c": "failed"}


@pytest.mark.slow
def test_the_row_says_whether_its_judge_was_checked(folder):
    frame = build_leaderboard(load_results(folder))
    assert set(frame.loc[frame["judge_name"] == "a", "judge_check"]) == {NO_CHECK}
    check = {"judge": "judge-a", "data": "llmbar", "accuracy": 0.6, "low": 0.55, "high": 0.65, "n": 419}
    write_json(check_file(folder.parent, "judge-a", "llmbar"), check)
    frame = build_leaderboard(load_results(folder))
    (told,) = set(frame.loc[frame["judge_name"] == "a", "judge_check"])
    assert told.startswith("llmbar: 60.0 % [55.0, 65.0] of 419 (judge-checks/judge-a-")
    assert (folder.parent / told.partition("(")[2][:-1]).is_file()
    assert set(frame.loc[frame["judge_name"] == "b", "judge_check"]) == {NO_CHECK}
    write_report(folder, figures=False)
    page = (folder / "leaderboard.md").read_text()
    assert "Its judge-check: llmbar: 60.0 %" in page and f"Its judge-check: {NO_CHECK}." in page
