"""Artifacts are complete or absent, built once, and say what they hold."""

import hashlib
import threading

import pytest

from harness.core.store import Store, build_artifact, find_artifact, read_jsonl, write_jsonl, write_text


def write_hello(folder):
    (folder / "hello.txt").write_text("hello")


def test_an_artifact_is_built_once_and_found_again(tmp_path):
    store, calls = Store(tmp_path), []

    def build(folder):
        calls.append(1)
        write_hello(folder)

    first = store.artifact("thing", {"a": 1}, build)
    second = store.artifact("thing", {"a": 1}, build)
    assert calls == [1] and first.path == second.path
    assert first.manifest["inputs"] == {"a": 1} and list(first.manifest["files"]) == ["hello.txt"]
    assert find_artifact(store.path("thing", {"a": 1})) and not find_artifact(store.path("thing", {"a": 2}))


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def build(folder):
        write_hello(folder)
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        build_artifact(tmp_path / "x", "thing", {}, build)
    assert find_artifact(tmp_path / "x") is None
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    stale = tmp_path / ".x.tmp-dead"
    stale.mkdir()
    (stale / "half").write_text("half")
    build_artifact(tmp_path / "x", "thing", {}, write_hello)
    assert not stale.exists() and find_artifact(tmp_path / "x") is not None


def test_an_artifact_made_of_other_inputs_is_replaced(tmp_path):
    build_artifact(tmp_path / "x", "thing", {"v": 1}, write_hello)
    assert find_artifact(tmp_path / "x", {"v": 2}) is None
    build_artifact(tmp_path / "x", "thing", {"v": 2}, lambda folder: (folder / "other.txt").write_text("other"))
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["artifact.json", "other.txt"]


def test_two_that_want_the_same_artifact_build_it_once(tmp_path):
    calls, inside = [], threading.Event()

    def build(folder):
        calls.append(1)
        inside.set()
        threading.Event().wait(0.2)
        write_hello(folder)

    def want():
        build_artifact(tmp_path / "x", "thing", {}, build)

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside.is_set() and calls == [1]


def test_the_manifest_names_every_file_with_its_hash(tmp_path):
    artifact = build_artifact(tmp_path / "x", "thing", {}, write_hello)
    assert artifact.manifest["files"] == {"hello.txt": hashlib.sha256(b"hello").hexdigest()}


def test_what_is_not_accepted_is_replaced_when_the_new_is_complete(tmp_path):
    build_artifact(tmp_path / "x", "thing", {}, write_hello)

    def fails(folder):
        raise RuntimeError("no answer")

    with pytest.raises(RuntimeError, match="no answer"):
        build_artifact(tmp_path / "x", "thing", {}, fails, accept=lambda artifact: False)
    assert (tmp_path / "x" / "hello.txt").read_text() == "hello", "the old stays until there is a new"
    again = build_artifact(
        tmp_path / "x", "thing", {}, lambda folder: (folder / "new").touch(), accept=lambda artifact: False
    )
    assert list(again.manifest["files"]) == ["new"]


def test_inputs_with_tuples_are_found_again(tmp_path):
    """JSON has no tuples; inputs written with a tuple must still be recognised."""
    build_artifact(tmp_path / "x", "thing", {"a": (1, 2)}, write_hello)
    assert find_artifact(tmp_path / "x", {"a": (1, 2)}) is not None


def test_writing_replaces_a_file_whole_and_leaves_no_trace(tmp_path):
    write_text(tmp_path / "a", "old")
    write_text(tmp_path / "a", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "new"


def test_jsonl_survives_line_separators_inside_texts(tmp_path):
    rows = [{"text": "a\u2028b\x85c\nd"}, {"text": "é"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows
