"""The leaderboard as people see it: a Markdown page and tables in a terminal."""

import io
import re

import pandas as pd
import pytest
from rich.console import Console

from harness.reporting.leaderboard import build_leaderboard
from harness.reporting.report import print_leaderboard
from harness.reporting.results import load_results
from harness.reporting.tables import csv_text, escape, markdown
from tests.reporting.results_folder import DECODING, plan_cell, write_cell, write_plan


@pytest.fixture(scope="module")
def page(leaderboard):
    return markdown(leaderboard, "example", DECODING)


def cells_of(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_page_has_a_table_per_task_and_one_of_training(page):
    headings = re.findall("^## (.*)$", page, re.MULTILINE)
    assert headings == ["hh", "tldr", "alpaca_eval (trained on hh)", "Training"]


def test_a_row_of_the_page_shows_the_rounded_numbers(page):
    line = next(line for line in page.splitlines() if "| dpo" in line)
    rank, loss, settings, win_rate, controlled, vs_sft, n, *rest = cells_of(line)
    coverage, flips, tokens, characters, finished, kl, status = rest
    assert (rank, loss, settings, n, coverage, flips) == ("1", "dpo", "beta=0.1", "8", "100.0", "25.0")
    assert (tokens, characters, finished, kl, status) == ("11.5", "100", "75", "3.50 ± 1.27", "ok")  # 1.96 x 0.6455
    assert re.fullmatch(r"75\.0 \\\[\d+\.\d, \d+\.\d\\\]", win_rate)
    assert vs_sft.startswith("+37.5 ") and controlled == "-"


def test_every_line_of_a_table_has_as_many_cells_as_its_head(page):
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({len(cells_of(line)) for line in block.splitlines()}) == 1


def test_the_notes_say_what_a_number_carries(page):
    notes = page.split("## tldr")[0]
    for part in (
        "against the chosen response",
        "95 % bootstrap intervals over prompts and 2 seeds",
        "preference_model-1a2b3c; it agrees with 64.0 % \\[60.0, 68.0\\] of 500 held-out labels: human choices",
        "temperature=1.0, top_p=0.95, max_new_tokens=64",
        "80 characters on average",
        "No rank for rpo_paired beta=0.1 temperature=0.5: 75.0 % of its judgements are there.",
    ):
        assert part in notes


def test_a_single_seed_is_not_passed_off_as_several(tmp_path):
    cell = plan_cell("dpo", {"beta": 0.1}, 0)
    folder = write_plan(tmp_path / "run", [cell])
    write_cell(folder, cell, {"hh": [1, 0]})
    page = markdown(build_leaderboard(load_results(folder)), "run", DECODING)
    assert "intervals over prompts (one seed: others may differ by more)" in page


def test_graded_and_hard_verdicts_are_told_apart(tmp_path):
    cells = [plan_cell(loss, {"beta": 0.1}, 0) for loss in ("dpo", "ipo")]
    folder = write_plan(tmp_path / "run", cells)
    for cell, graded in zip(cells, ([1.0, 1.0, 1.0, 1.0], [0.5, 0.0, None, 1.0]), strict=True):
        write_cell(folder, cell, {"hh": [0.9, 1, "failed", 0]}, graded=graded)
    board = build_leaderboard(load_results(folder))
    assert board.set_index("loss")["graded_rate"].to_dict() == {"dpo": 1.0, "ipo": 0.5}
    note = "Log-probs grade 75.0 % of its verdicts between 0 and 1 (mean of the rows, which have 50.0 to 100.0 %)"
    assert f"{note}; the others are 0 or 1." in markdown(board, "run", DECODING)


def test_what_others_wrote_is_no_markup(page):
    """The reason of the failed cell holds a pipe, HTML and a line break."""
    assert "the loss became nan \\| &lt;b&gt;step 3&lt;/b&gt; more" in page
    assert "<b>" not in page


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", "a\\|b"),
        ("<script>x</script>", "&lt;script&gt;x&lt;/script&gt;"),
        ("[x](y) ![z](w)", "\\[x\\](y) \\!\\[z\\](w)"),
        ("*a* `b` ~c~ \\d", "\\*a\\* \\`b\\` \\~c\\~ \\\\d"),
        ("_a_ rpo_paired $x$", "\\_a\\_ rpo_paired \\$x\\$"),
        ("&lt; line\nbreak", "&amp;lt; line break"),
    ],
)
def test_escaped_text_shows_as_it_is(text, shown):
    assert escape(text) == shown


def printed(leaderboard, **options):
    console = Console(file=io.StringIO(), **options)
    print_leaderboard(leaderboard, console)
    return console.file.getvalue()


def test_a_terminal_of_100_columns_shows_each_row_whole(leaderboard):
    lines = printed(leaderboard, width=100, force_terminal=True, color_system=None).splitlines()
    assert max(map(len, lines)) <= 100
    dpo = next(line for line in lines if "dpo beta=0.1" in line)
    assert re.search(r"1 +dpo beta=0\.1 +75\.0 \[\d+\.\d, \d+\.\d\] +\+37\.5 \[.*\] +8 +11\.5 +60\.0 +3\.50", dpo)


def test_piped_output_is_as_readable_as_a_terminal_and_has_no_escapes(leaderboard):
    text = printed(leaderboard, width=80)
    assert re.search(r"1 +dpo beta=0\.1 +75\.0 \[\d+\.\d, \d+\.\d\]", text)
    assert "\x1b" not in text
    assert "…" not in text


def test_brackets_in_what_others_wrote_are_not_taken_for_styles(leaderboard):
    changed = leaderboard.assign(status="failed: seed 0, train: [/red]IndexError", settings="name=[/green]x")
    text = printed(changed, width=100)
    assert "[/red]IndexError" in text
    assert "dpo name=[/green]x" in text


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\n=1", "\uff1d1+1"])
def test_no_text_is_a_formula_in_a_spreadsheet(text):
    frame = pd.DataFrame({"loss": [text, "dpo"], "win_rate": [-1.5, 2.0]})
    read = pd.read_csv(io.StringIO(csv_text(frame)))
    assert read["loss"].tolist() == [f"'{text}", "dpo"]
    assert read["win_rate"].tolist() == [-1.5, 2.0]


def test_control_characters_are_spelled_out_in_a_csv():
    assert csv_text(pd.DataFrame({"loss": ["a\r=1\x1b[2J", "\t=1"]})) == "loss\na\\r=1\\x1b[2J\n\\t=1\n"


@pytest.mark.parametrize("text", ["-1.5", "+3", "-1e-05", "-inf", "a=1", "x - y"])
def test_numbers_and_other_text_stay_as_they_are_in_a_csv(text):
    frame = pd.DataFrame({"settings": [text], "rank": pd.array([None], dtype="Int64"), "flipped": [True]})
    assert csv_text(frame) == f"settings,rank,flipped\n{text},,True\n"
