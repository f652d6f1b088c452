"""The command verify: a clean store is clean, and each damage is one line with what to do."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from filelock import FileLock

from harness.cli.main import main
from harness.core.store import read_json, read_jsonl, write_json, write_jsonl
from harness.evaluation.endpoint.cache import CACHE_FILE
from tests.rehashed import rehash


@pytest.fixture
def results(finished, tmp_path) -> Path:
    """A copy of the finished run's results that a test may damage."""
    return shutil.copytree(finished.parent / "results", tmp_path / "results")


@pytest.fixture
def verify(capsys):
    def verify(results: Path) -> tuple[int, list[str], str]:
        """Return the status, the lines about what was found, and the last line."""
        capsys.readouterr()
        status = main(["verify", str(results)])
        *lines, last = capsys.readouterr().out.splitlines()
        return status, lines, last

    return verify


def cell(results: Path, loss: str = "dpo") -> Path:
    return next(
        path.parent for path in sorted(results.glob("tiny/cells/*/cell.json")) if read_json(path)["loss"] == loss
    )


def test_a_store_as_it_was_written_is_clean_and_is_not_changed(results, verify):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in results.rglob("*") if path.is_file()}
    status, lines, last = verify(results)
    assert (status, lines) == (0, [])
    number = len(list(results.rglob("artifact.json")))
    assert last == f"{results}: {number} artifacts checked; nothing is damaged" and number > 10
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in results.rglob("*") if path.is_file()}
    kept = {path for path in after if not path.name.endswith((".checked", ".lock"))}
    assert {path: after[path] for path in kept} == {path: before[path] for path in before if path in kept}


def test_of_one_experiment_only_its_own_files_are_checked(results, verify):
    next(results.glob("store/sft/*/tensors.safetensors")).write_bytes(b"")
    assert verify(results / "tiny")[0] == 0
    assert verify(results)[0] == 1


def flip(file: Path, place: int = -1) -> None:
    """Change a byte and nothing that a quick look would see."""
    content, times = bytearray(file.read_bytes()), file.stat()
    content[place] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def one(results: Path, pattern: str) -> Path:
    return sorted(results.glob(pattern))[0]


def edit(file: Path, **changes) -> None:
    write_json(file, {**read_json(file), **changes})


def answers(results: Path) -> Path:
    """The file of the answers that were paid for."""
    file = results / "store" / CACHE_FILE
    file.parent.mkdir(exist_ok=True)
    return file


def rows_of(file: Path, change) -> None:
    write_jsonl(file, change(read_jsonl(file)))
    rehash(file.parent)


DAMAGES = {
    "weights": (
        lambda r: flip(one(r, "store/sft/*/tensors.safetensors")),
        "tensors.safetensors is not what was written",
    ),
    "reference": (lambda r: flip(one(r, "store/reference/*/values.npy")), "values.npy is not what was written"),
    "cut": (
        lambda r: one(r, "store/reference/*/values.npy").write_bytes(b"12"),
        "values.npy has 2 bytes and was written",
    ),
    "gone": (lambda r: (cell(r) / "train/metrics.jsonl").unlink(), "metrics.jsonl is missing"),
    "samples": (lambda r: flip(cell(r) / "sample-hh/samples.jsonl", 40), "samples.jsonl is not what was written"),
    "no manifest": (lambda r: (cell(r) / "train/artifact.json").unlink(), "artifact.json cannot be read"),
    "empty manifest": (lambda r: (cell(r) / "train/artifact.json").write_text(""), "artifact.json cannot be read"),
    "wrong type": (lambda r: edit(cell(r) / "train/artifact.json", files=[]), "field 'files': expected dict, got []"),
    "inputs": (lambda r: edit(cell(r) / "train/artifact.json", inputs={}), "artifact.json names the inputs of another"),
    "key": (
        lambda r: edit(one(r, "store/sft/*/artifact.json"), inputs={}),
        "artifact.json names the inputs of another",
    ),
    "kind": (lambda r: edit(one(r, "store/sft/*/artifact.json"), kind="x"), "artifact.json calls it 'x'"),
    "plan": (lambda r: (r / "tiny/plan.json").write_text("{"), "cannot be read"),
    "plan's type": (lambda r: edit(r / "tiny/plan.json", cells=3), "field 'cells': expected list, got 3"),
    "manifest": (lambda r: (r / "tiny/manifest.json").write_text("[]"), "expected the fields of a RunManifest"),
    "config": (lambda r: edit(r / "tiny/manifest.json", config={"tasks": 3}), "field 'config': field 'tasks'"),
    "cell": (lambda r: (cell(r) / "cell.json").write_text("null"), "expected the fields of a CellRecord"),
    "another cell": (lambda r: edit(cell(r) / "cell.json", key="k"), "it is the record of another cell, k"),
    "no cell": (lambda r: (cell(r) / "cell.json").unlink(), "it has no cell.json"),
    "failures": (lambda r: (cell(r) / "failures.jsonl").write_text("3"), "row 1: expected the fields of a Failure"),
    "start": (
        lambda r: ((cell(r) / "train/start.json").write_text("[]"), rehash(cell(r) / "train")),
        "start.json: expected dict, got []",
    ),
    "rows cut": (
        lambda r: rows_of(cell(r) / "sample-hh/samples.jsonl", lambda rows: rows[:-1]),
        "1 of 6 questions have no",
    ),
    "rows twice": (
        lambda r: rows_of(cell(r) / "judge-hh/judgements.jsonl", lambda rows: rows + rows[:2]),
        "row 7: it stands there twice",
    ),
    "verdicts cut": (
        lambda r: rows_of(cell(r) / "judge-hh/judgements.jsonl", lambda rows: rows[:4]),
        "2 of 6 responses have no row",
    ),
    "a field": (
        lambda r: rows_of(cell(r) / "judge-hh/judgements.jsonl", lambda rows: [row | {"status": 1} for row in rows]),
        "row 1: field 'status': expected str, got 1",
    ),
    "answers": (
        lambda r: answers(r).write_bytes(b"no data base" * 100),
        "the data base is damaged",
    ),
    "check": (
        lambda r: ((r / "judge-checks/a").mkdir(parents=True), (r / "judge-checks/a/b.json").write_text("{}")),
        "no field 'data'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damage_is_one_line_that_says_what_to_do(results, verify, damage):
    make, expected = DAMAGES[damage]
    make(results)
    status, lines, last = verify(results)
    assert status == 1 and last.endswith("; faults: 1"), lines
    (line,) = [line for line in lines if not line.startswith("left over: ")]
    assert line.startswith(f"damaged: {results}/") and expected in line
    assert line.partition("; ")[2].startswith(("delete ", "run the experiment again", "move it away"))


@pytest.mark.parametrize(
    ("stage", "of"),
    [("judge-hh", "other samples than those beside it"), ("sample-hh", "another policy than the one beside it")],
)
def test_a_stage_of_another_cell_is_named_and_not_used(results, verify, stage, of):
    one, other = [file.parent for file in results.glob("tiny/cells/*/cell.json") if read_json(file)["loss"] == "dpo"]
    (one / stage).rename(results / "aside")
    (other / stage).rename(one / stage)
    (results / "aside").rename(other / stage)
    status, lines, _ = verify(results)
    told = [f"left over: {place / stage}: it is of {of}; it is not used" for place in (one, other)]
    assert status == 0 and all(any(line.startswith(start) for line in lines) for start in told), lines


def test_answers_that_can_be_read_are_fine(results, verify):
    with sqlite3.connect(answers(results)) as connection:
        connection.execute("CREATE TABLE answers (key TEXT)")
    assert verify(results)[0] == 0


def test_what_killed_builds_left_is_named_and_is_no_damage(results, verify):
    (cell(results) / ".train.tmp-dead").mkdir()
    (one(results, "store/sft/[!.]*").parent / "abc.partial").mkdir()
    (cell(results) / "train/notes.txt").write_text("mine")
    (results / "tiny/.plan.json.0a1b2c3d").write_text("{")
    status, lines, last = verify(results)
    assert status == 0 and last.endswith("nothing is damaged")
    assert sorted(line.partition("; ")[2] for line in lines) == [
        "delete it",
        "delete it",
        "delete it, or move it away",
        "the next run goes on from there",
    ]


def test_what_is_built_at_the_moment_is_left_out(results, verify):
    train = cell(results) / "train"
    (train / "artifact.json").unlink()
    (train.parent / ".train.tmp-1").mkdir()
    with FileLock(train.parent / ".train.lock"):
        assert verify(results)[:2] == (0, [])
    assert verify(results)[0] == 1


@pytest.mark.parametrize("place", ["nowhere", "empty", "file"])
def test_a_folder_without_results_is_the_user_s_to_mend(tmp_path, place, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text(json.dumps({}))
    assert main(["verify", str(tmp_path / place)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: no results in {tmp_path / place}; ") and error.count("\n") == 1


def test_the_next_run_mends_what_can_be_mended_and_says_so(results, finished, verify, recwarn):
    folder = cell(results)
    flip(folder / "judge-hh/judgements.jsonl", 40)
    flip(folder / "sample-alpaca_eval/samples.jsonl", 40)
    (folder / "train/artifact.json").write_text("{")
    flip(one(results, "store/reference/*/values.npy"))
    for name in ("plan.json", "manifest.json"):
        (results / "tiny" / name).write_text("{")
    assert verify(results)[2].endswith("faults: 6")
    assert main(["run", str(finished), f"results={results}"]) == 1, "one loss of this experiment always fails"
    said = [str(warning.message) for warning in recwarn if "is damaged" in str(warning.message)]
    assert len(said) == 4 and all(line.endswith("; it is made again") for line in said)
    assert verify(results)[:2] == (0, [])
