"""AlpacaEval 2.0's metrics, recomputed from published annotations of 16 models, and errors for malformed files."""

import gzip
import json
import math
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from harness.cli.main import main
from harness.core.errors import UserError
from harness.evaluation.alpaca_eval.difficulty import difficulty_table
from harness.evaluation.alpaca_eval.metrics import (
    Annotations,
    length_controlled_win_rate,
    read_annotations,
    shows_model_first,
    win_rates,
)
from harness.evaluation.statistics import logistic
from harness.tasks.sources import read_packaged
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "tests/evaluation/data/alpaca_eval"
PUBLISHED = pd.read_csv(FOLDER / "published.csv", index_col=0)
INCOMPLETE = {"text_davinci_001": 803, "minotaur-13b": 804}


def path_of(model):
    return FOLDER / f"{model}.csv.gz"


@pytest.fixture(scope="module")
def table():
    return difficulty_table("estimated")


@pytest.fixture
def says(capsys):
    """Return a function that runs `alpaca-lc` and returns its exit status and output."""

    def run(*arguments):
        status = main(["alpaca-lc", *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def write(tmp_path):
    def write_lines(*lines):
        path = tmp_path / "annotations.csv"
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write_lines


@pytest.mark.parametrize("model", PUBLISHED.index)
def test_the_published_win_rates_come_out(model):
    metrics = win_rates(read_annotations(path_of(model)).preference)
    published = PUBLISHED.loc[model]
    assert metrics == pytest.approx({name: published[name] for name in metrics}, abs=1e-6)
    assert metrics["n_total"] == INCOMPLETE.get(model, 805)


@pytest.mark.parametrize("model", PUBLISHED.index)
def test_the_published_length_controlled_rates_come_out(model, table):
    """Estimated difficulties are aligned by position like upstream's, which matters for incomplete files only."""
    annotations = read_annotations(path_of(model))
    rate, _ = length_controlled_win_rate(annotations, table, alignment="position", resamples=1)
    assert rate.value == pytest.approx(PUBLISHED.loc[model, "length_controlled_winrate"], abs=0.12)
    aligned, reason = length_controlled_win_rate(annotations, table, resamples=1)
    if model in INCOMPLETE:
        assert math.isnan(aligned.value) and reason.endswith("of the 805 instructions have no row")
    else:
        assert aligned.value == rate.value and not reason


@pytest.mark.parametrize("model", PUBLISHED.index)
def test_which_output_was_shown_first_is_known_for_every_row(model):
    instructions = [row.values["instruction"] for row in read_packaged("alpaca_eval")]
    published = pd.read_csv(path_of(model)).dropna(subset="is_switched")
    assert len(published) >= 803
    switched = [shows_model_first(instructions[i]) for i in published["instruction_index"]]
    assert switched == published["is_switched"].astype(bool).tolist()


def test_half_of_the_instructions_are_switched():
    assert sum(shows_model_first(row.values["instruction"]) for row in read_packaged("alpaca_eval")) == 406


def test_rows_may_come_in_any_order_where_they_are_aligned_by_instruction(table):
    whole = read_annotations(path_of("alpaca-7b"))
    order = np.random.default_rng(0).permutation(805)
    shuffled = Annotations(*(column[order] for column in vars(whole).values()))
    rate, other = (length_controlled_win_rate(a, table, resamples=1)[0].value for a in (whole, shuffled))
    assert other == pytest.approx(rate, abs=0.1), "the folds of the cross-validation go by row"


def test_the_reference_against_itself_is_at_fifty_percent(table):
    everything = np.arange(805)
    rate, _ = length_controlled_win_rate(
        Annotations(everything, everything + 5.0, everything + 5.0, np.full(805, 1.5)), table
    )
    assert rate == pytest.approx((50, 50, 50))


def test_metrics_by_hand():
    """A loss at 1.2, a win at 1.9, a draw as 0 and as 1.5, and a NaN: the mean of 0.2, 0.9, 0.5 and 0.5 is 0.525."""
    metrics = win_rates(np.array([1.2, 1.9, 0, 1.5, math.nan]))
    assert (metrics["n_total"], metrics["n_wins"], metrics["n_wins_base"], metrics["n_draws"]) == (4, 1, 1, 2)
    assert metrics["win_rate"] == pytest.approx(52.5) and metrics["discrete_win_rate"] == pytest.approx(50)
    assert metrics["standard_error"] == pytest.approx(100 * math.sqrt((0.325**2 + 0.375**2 + 2 * 0.025**2) / 3 / 4))


def test_the_command_prints_one_object(says, monkeypatch):
    """Speed is not timed; Newton steps are counted. Each step updates the fits of many resamples together. Fitting the
    1,000 resamples one at a time would take thousands of steps."""
    steps, penalised_step = [], logistic._penalised_step
    monkeypatch.setattr(logistic, "_penalised_step", lambda *values: steps.append(1) or penalised_step(*values))
    status, out, err = says(path_of("vicuna-7b"), "--json", "--difficulty", "estimated")
    assert 0 < len(steps) < 200
    rates = json.loads(out)
    assert (status, err) == (0, "")
    published = PUBLISHED.loc["vicuna-7b"]
    assert rates["win_rate"] == pytest.approx(published["win_rate"], abs=1e-6)
    assert rates["standard_error"] == pytest.approx(published["standard_error"], abs=1e-6)
    assert rates["n_total"] == 805 and rates["difficulty"] == "estimated"
    assert rates["length_controlled_winrate"] == pytest.approx(published["length_controlled_winrate"], abs=0.2)
    assert 4 < rates["length_controlled_low"] < rates["length_controlled_winrate"] < rates["length_controlled_high"] < 9


def test_the_command_says_which_difficulties_and_why(says, tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    status, out, _ = says(path_of("vicuna-7b"))
    assert status == 0 and "win rate            4.16 %, standard error 0.61, n 805" in out
    assert "difficulties        estimated (the official table: OfflineModeIsEnabled" in out
    status, out, err = says(path_of("vicuna-7b"), "--difficulty", "official")
    assert status == 2 and out == "" and "the official table of instruction difficulties cannot be had" in err


def test_an_incomplete_file_has_no_length_controlled_rate_unless_upstream_s_is_asked_for(says):
    path = path_of("text_davinci_001")
    _, out, _ = says(path, "--json", "--difficulty", "estimated")
    assert json.loads(out)["length_controlled_winrate"] is None
    assert json.loads(out)["length_controlled_missing"] == "2 of the 805 instructions have no row"
    _, out, _ = says(path, "--difficulty", "estimated")
    assert "not given: 2 of the 805 instructions have no row" in out and "--alignment position" in out
    _, out, _ = says(path, "--json", "--difficulty", "estimated", "--alignment", "position")
    assert json.loads(out)["length_controlled_winrate"] == pytest.approx(9.026, abs=0.2)


def test_a_plain_file_is_read_like_a_gzipped_one(tmp_path):
    path = tmp_path / "plain.csv"
    path.write_bytes(gzip.decompress(path_of("phi-2-sft").read_bytes()))
    for one, other in zip(*(vars(read_annotations(p)).values() for p in (path, path_of("phi-2-sft"))), strict=True):
        np.testing.assert_array_equal(one, other)


def test_judgements_that_failed_are_left_out(write):
    path = write("instruction_index,len_1,len_2,preference", "0,5,6,2", "1,5,6,", "2,5,6,-1", "3,5,6,nan", "4,5,6,1")
    assert win_rates(read_annotations(path).preference)["win_rate"] == 50
    assert win_rates(read_annotations(path).preference)["n_total"] == 2


HEADER = "instruction_index,len_1,len_2,preference"


@pytest.mark.parametrize(
    "lines, message",
    [
        ((), ": no column instruction_index and len_1 and len_2 and preference; needed:"),
        (("instruction_index,len_1,preference", "0,5,1"), ": no column len_2; needed: instruction_index, len_1"),
        ((HEADER,), ": no rows below the header"),
        ((HEADER, "0,5,6,2", "x,5,6,2"), ":3: instruction_index must be a number, got 'x'"),
        ((HEADER, "805,5,6,2"), ":2: instruction_index must be a whole number from 0 to 804, got '805'"),
        ((HEADER, "0.5,5,6,2"), ":2: instruction_index must be a whole number from 0 to 804, got '0.5'"),
        ((HEADER, "0,-5,6,2"), ":2: len_1 must be a whole number from 0 up, got '-5'"),
        ((HEADER, "0,5,inf,2"), ":2: len_2 must be a whole number from 0 up, got 'inf'"),
        ((HEADER, "0,5,nan,2"), ":2: len_2 must be a whole number from 0 up, got 'nan'"),
        ((HEADER, "0,5"), ":2: len_2 must be a number, got ''"),
        ((HEADER, "0,5,6,2.5"), ":2: preference must be 1 (reference) to 2 (model), 0 (draw), or empty, got '2.5'"),
        ((HEADER, "0,5,6,2", "1,5,6,2", "0,5,6,1"), ":4: instruction 0 stands in line 2 too; keep one of the two"),
        ((HEADER, '0,5,6,"2'), ": not CSV after line 1 (unexpected end of data)"),
    ],
)
def test_a_bad_file_is_one_line(says, write, lines, message):
    path = write(*lines)
    status, out, err = says(path)
    assert status == 2 and out == "" and err.startswith(f"error: {path}{message}") and err.count("\n") == 1


BROKEN = bytearray(path_of("vicuna-7b").read_bytes())
BROKEN[1000:1010] = bytes(10)


@pytest.mark.parametrize("content", [b"\x1f\x8bnot gzip", bytes(BROKEN), BROKEN[:900], b"\xff\xfe\x00", None])
def test_a_file_that_cannot_be_read_is_one_line(says, tmp_path, content):
    path = tmp_path / "annotations.csv"
    if content is not None:
        path.write_bytes(content)
    status, out, err = says(path)
    assert status == 2 and out == "" and err.startswith(f"error: {path}: cannot be read") and err.count("\n") == 1


def test_no_preference_at_all_is_no_rate(says, write):
    status, out, _ = says(write(HEADER, "0,5,6,"), "--json", "--difficulty", "estimated")
    assert status == 0 and json.loads(out)["win_rate"] is None and json.loads(out)["n_total"] == 0
    with pytest.raises(UserError):
        read_annotations(write(HEADER))


OFFICIAL = """
import json, sys
import pandas as pd
from alpaca_eval.metrics import glm_winrate
table, *files = sys.argv[1:]
glm_winrate.hf_hub_download = lambda **_: table
for file in files:
    rows = pd.read_csv(file)
    outputs = {f"output_{i}": ["x" * length for length in rows[f"len_{i}"]] for i in (1, 2)}
    annotations = pd.DataFrame({"preference": rows["preference"], **outputs, "generator_1": "a", "generator_2": "b"})
    metrics = glm_winrate.get_length_controlled_winrate(annotations, save_weights_dir=None)
    print(json.dumps({name: float(value) for name, value in metrics.items()}))
"""


@pytest.mark.slow
def test_the_official_package_finds_the_same_rates(table, tmp_path):
    """The package runs in a separate process. The estimated table replaces the one that upstream downloads."""
    plain = tmp_path / "df_gamed.csv"
    packaged = REPOSITORY / "harness/tasks/data/alpaca_eval_difficulty.csv.gz"
    plain.write_bytes(gzip.decompress(packaged.read_bytes()))
    files = [str(path_of(model)) for model in PUBLISHED.index]
    result = subprocess.run(
        [sys.executable, "-c", OFFICIAL, str(plain), *files],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    for model, line in zip(PUBLISHED.index, result.stdout.splitlines(), strict=True):
        official, annotations = json.loads(line), read_annotations(path_of(model))
        ours = win_rates(annotations.preference)
        assert ours == pytest.approx({name: official[name] for name in ours}, abs=1e-9)
        rate, _ = length_controlled_win_rate(annotations, table, alignment="position", resamples=1)
        assert rate.value == pytest.approx(official["length_controlled_winrate"], abs=0.05), model
