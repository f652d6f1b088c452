"""AlpacaEval's table of difficulties: the official table if available, and never another table under its name."""

import gzip
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from harness.core.errors import UserError
from harness.evaluation.alpaca_eval.difficulty import (
    FILE,
    PACKAGED,
    REVISION,
    difficulty_table,
    official_table,
    read_table,
)
from tests.hub import served

ASK = """
import json, sys
from harness.core.errors import UserError
from harness.evaluation.alpaca_eval.difficulty import difficulty_table, official_table
try:
    text, reason = official_table(*sys.argv[1:])
    print(json.dumps([text and len(text), reason]))
except UserError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture
def ask(tmp_path):
    """Return a function that gets the official table in a new process, from a local hub that serves tmp_path/hub."""
    with served(tmp_path) as environment:
        environment["HARNESS_CACHE"] = str(tmp_path / "kept")

        def ask(*arguments):
            result = subprocess.run(
                [sys.executable, "-c", ASK, *arguments], env=environment, capture_output=True, text=True
            )
            assert result.returncode == 0, result.stderr
            return json.loads(result.stdout)

        yield ask


@pytest.fixture
def upload(tmp_path):
    def upload(content):
        path = tmp_path / "hub/tatsu-lab/alpaca_eval" / FILE
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        return path

    return upload


def test_the_packaged_estimate_has_all_instructions_and_both_anchors():
    table = difficulty_table("estimated")
    assert table.origin == "estimated" and table.difficulty.shape == (805,)
    assert len(table.anchors.terms) == len(table.anchors.preferences) == 1610
    assert np.isfinite(table.difficulty).all() and np.abs(table.anchors.terms).max() <= 1
    assert table.anchors.preferences.min() >= 0 and table.anchors.preferences.max() <= 1
    np.testing.assert_array_equal(table.anchors.difficulty, np.tile(table.difficulty, 2))


def test_a_file_with_another_hash_is_refused(ask, upload):
    upload(b"index,preference\n")
    said = ask()
    assert REVISION in said and "is not AlpacaEval's table of instruction difficulties: its sha256 is" in said


def test_the_file_is_kept_so_that_the_next_time_needs_no_hub(ask, upload, tmp_path):
    content = gzip.decompress(PACKAGED.read_bytes())
    served = upload(content)
    sha256 = hashlib.sha256(content).hexdigest()
    assert ask(sha256) == [len(content), ""]
    served.unlink()
    assert ask(sha256) == [len(content), ""]
    kept = tmp_path / "kept/alpaca_eval" / FILE
    kept.write_bytes(content[:-1])
    said = ask(sha256)
    assert said.startswith(f"{kept} is not AlpacaEval's table") and "delete it if it is a local copy" in said


def test_a_hub_without_the_file_is_a_reason(ask):
    text, reason = ask()
    assert text is None and "404" in reason


def test_offline_the_estimate_stands_in_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    text, reason = official_table()
    assert text is None and reason.startswith("OfflineModeIsEnabled")
    table = difficulty_table("auto")
    assert table.origin == "estimated" and table.note.startswith("the official table: OfflineModeIsEnabled")
    with pytest.raises(UserError, match=r"the official table .* cannot be had: OfflineModeIsEnabled"):
        difficulty_table("official")


@pytest.mark.parametrize("text", ["", "index\n0\n", "index,preference,std_delta_len,instruction_difficulty\n0,1,2,3\n"])
def test_what_is_no_such_table_is_an_error(text):
    with pytest.raises(UserError, match="the official table of instruction difficulties"):
        read_table(text, "official")
