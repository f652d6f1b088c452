"""The report as a whole: made from the folder alone, the same twice, and without anything heavy."""

import subprocess
import sys

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from harness.core.errors import UserError
from harness.reporting.leaderboard import COLUMNS
from harness.reporting.report import write_report
from tests.conftest import REPOSITORY
from tests.reporting.results_folder import write_example

TEXTS = ["leaderboard.csv", "leaderboard.md", "prompts.csv"]


def test_the_csv_holds_the_whole_leaderboard_unrounded(example, leaderboard):
    text = [name for name in COLUMNS if pd.api.types.is_string_dtype(leaderboard[name])]
    missing = {name: [""] for name in COLUMNS if name not in text}
    types = dict.fromkeys(text, "str")
    read = pd.read_csv(example / "leaderboard.csv", dtype=types, keep_default_na=False, na_values=missing)
    assert_frame_equal(read, leaderboard, check_dtype=False, check_exact=True)


def test_the_prompt_table_holds_every_response(example):
    """hh: 7 cells that ran, with 4 prompts and 2 of alpaca_eval; tldr: 6 cells with 4. Ties: 2 + 2, and 8 on tldr."""
    prompts = pd.read_csv(example / "prompts.csv")
    assert len(prompts) == 7 * (4 + 2) + 6 * 4
    assert prompts["status"].value_counts().to_dict() == {"ok": 52, "tie": 12, "failed": 1, "unparsable": 1}
    assert prompts["preference"].isna().sum() == 2


@pytest.mark.slow
def test_the_report_comes_out_the_same_twice(example, tmp_path):
    """Tables and pictures alike, byte for byte."""
    folder = write_example(tmp_path / "example")
    write_report(folder)
    names = [*TEXTS, *(f"plots/{file.name}" for file in (example / "plots").iterdir())]
    assert len(names) == 3 + 8
    assert [name for name in names if (folder / name).read_bytes() != (example / name).read_bytes()] == []
    assert sorted(file.name for file in folder.iterdir()) == sorted(["cells", "plan.json", "plots", *TEXTS])


@pytest.mark.slow
def test_the_report_needs_neither_torch_nor_transformers(tmp_path):
    """Another process, in which importing any of the heavy packages fails."""
    folder = write_example(tmp_path / "example")
    program = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "datasets", "accelerate", "peft", "openai", "sklearn"):
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocker())
from rich.console import Console
from harness.reporting.report import print_leaderboard, write_report
print_leaderboard(write_report({str(folder)!r}), Console())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "75.0 [" in done.stdout
    assert (folder / "plots/win_rate.png").is_file()


def test_without_figures_the_tables_are_the_same_and_those_drawn_before_are_gone(example, tmp_path):
    folder = write_example(tmp_path / "example")
    (folder / "plots").mkdir()
    for name in ("win_rate.png", "win_rate.pdf", "frontier.png"):
        (folder / "plots" / name).write_bytes(b"of an earlier run")
    write_report(folder, figures=False)
    assert [name for name in TEXTS if (folder / name).read_bytes() != (example / name).read_bytes()] == []
    assert list((folder / "plots").iterdir()) == []


def test_a_folder_without_a_run_is_an_error_and_stays_empty(tmp_path):
    with pytest.raises(UserError, match="run it first"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_leaves_the_last_report_as_it_was(tmp_path):
    folder = write_example(tmp_path / "example")
    (folder / "leaderboard.csv").write_text("the last report")
    (folder / "cells/tldr-dpo-0.1-1/judge-tldr/judgements.jsonl").write_text("{")
    with pytest.raises(UserError):
        write_report(folder)
    assert (folder / "leaderboard.csv").read_text() == "the last report"
    assert not (folder / "leaderboard.md").exists()


def test_a_place_that_cannot_be_written_is_an_error_of_one_line(tmp_path):
    folder = write_example(tmp_path / "example")
    (folder / "plots").write_text("a file where the plots' folder should be")
    with pytest.raises(UserError, match=r"cannot write the report into .*example") as raised:
        write_report(folder)
    assert "\n" not in str(raised.value)
