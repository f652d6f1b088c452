"""The summary of a judge's checks: what was measured, and files that cannot be read."""

import json

import pytest

from harness.reporting.judge_checks import NO_CHECK, check_file, checks_of

CHECK = {"data": "llmbar", "n": 40, "accuracy": 0.5, "low": 0.4, "high": 0.6, "limit": None}


@pytest.fixture
def write(tmp_path):
    def write(data: str, content: object, limit: int | None = None) -> str:
        file = check_file(tmp_path, "a judge", data, limit)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(file.relative_to(tmp_path))

    return write


def test_each_check_is_told_with_its_file(write, tmp_path):
    assert checks_of(tmp_path, "a judge") == NO_CHECK
    first, second = write("llmbar", CHECK), write("pandalm", CHECK | {"data": "pandalm", "limit": 9}, 9)
    assert checks_of(tmp_path, "a judge") == (
        f"llmbar: 50.0 % [40.0, 60.0] of 40 ({first}); pandalm, the first 9: 50.0 % [40.0, 60.0] of 40 ({second})"
    )


def test_a_check_that_measured_nothing_says_so(write, tmp_path):
    """Earlier versions kept such checks."""
    file = write("llmbar", CHECK | {"n": 0, "accuracy": None, "low": None, "high": None})
    assert checks_of(tmp_path, "a judge") == f"llmbar: not measured (0 judged) ({file})"


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "{}", "[" * 100_000, json.dumps(CHECK | {"accuracy": "high"}), json.dumps({"data": None})],
    ids=lambda text: text[:12],
)
def test_a_damaged_check_is_named_and_spoils_no_other(write, tmp_path, content):
    whole, damaged = write("pandalm", CHECK | {"data": "pandalm"}), write("llmbar", content)
    told = checks_of(tmp_path, "a judge")
    assert f"{damaged} cannot be read: run judge-check again" in told
    assert f"pandalm: 50.0 % [40.0, 60.0] of 40 ({whole})" in told


def test_two_data_files_never_share_a_check(tmp_path):
    names = ["a/b.jsonl", "a-b.jsonl", "a b.jsonl", "llmbar", "x" * 300, "x" * 301]
    files = [check_file(tmp_path, "a judge", name) for name in names]
    assert len(set(files)) == len(names) and max(len(file.name) for file in files) < 100
    assert files[3].name == "llmbar.json"
