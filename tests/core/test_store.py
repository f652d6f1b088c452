"""Artifacts are complete or absent, built once, and say what they hold."""

import errno
import hashlib
import json
import os
import shutil
import threading
from contextlib import nullcontext

import pytest

from harness.core import integrity
from harness.core.store import MANIFEST, Store, build_artifact, find_artifact, read_jsonl, write_jsonl, write_text


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


def stored(tmp_path):
    """An artifact with two files, and the number of times that it was built."""
    builds = []

    def build(folder):
        builds.append(1)
        write_hello(folder)
        (folder / "deep").mkdir()
        (folder / "deep" / "rows.jsonl").write_text('{"id": 1}\n{"id": 2}\n')

    return build_artifact(tmp_path / "x", "thing", {"v": 1}, build), build, builds


DAMAGES = {
    "a byte is flipped": lambda path: (path / "hello.txt").write_text("hellO"),
    "rows are cut": lambda path: (path / "deep/rows.jsonl").write_text('{"id": 1}\n'),
    "a file is gone": lambda path: (path / "hello.txt").unlink(),
    "a file is a folder": lambda path: ((path / "hello.txt").unlink(), (path / "hello.txt").mkdir()),
    "no manifest": lambda path: (path / MANIFEST).unlink(),
    "an empty manifest": lambda path: (path / MANIFEST).write_text(""),
    "a cut manifest": lambda path: (path / MANIFEST).write_text((path / MANIFEST).read_text()[:40]),
    "not text": lambda path: (path / MANIFEST).write_bytes(b"\xff\x00"),
    "another type": lambda path: (path / MANIFEST).write_text("[1]"),
    "an old manifest": lambda path: (path / MANIFEST).write_text('{"inputs": {"v": 1}}'),
    "hashes that are none": lambda path: (path / MANIFEST).write_text(
        '{"inputs": {"v": 1}, "files": {"hello.txt": 3}}'
    ),
    "no hashes": lambda path: (path / MANIFEST).write_text('{"inputs": {"v": 1}, "files": {}}'),
    "nested without end": lambda path: (path / MANIFEST).write_text(100_000 * "["),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_not_found_but_made_again_and_said(tmp_path, damage):
    artifact, build, builds = stored(tmp_path)
    DAMAGES[damage](artifact.path)
    assert find_artifact(artifact.path, {"v": 1}) is None
    with pytest.warns(UserWarning) as warned:
        again = build_artifact(artifact.path, "thing", {"v": 1}, build)
    assert builds == [1, 1] and (again.path / "hello.txt").read_text() == "hello" and again.damage == ""
    (said,) = [str(warning.message) for warning in warned]
    assert f"{artifact.path} is damaged: " in said and said.endswith("; it is made again") and "\n" not in said
    assert find_artifact(artifact.path, {"v": 1}) and not list(tmp_path.glob("*tmp*"))


def test_a_change_that_leaves_size_and_time_of_a_file_is_found(tmp_path):
    artifact, *_ = stored(tmp_path)
    file = artifact.path / "hello.txt"
    before = file.stat()
    file.write_text("jello")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert find_artifact(artifact.path) is None


def test_files_are_hashed_only_if_size_or_times_changed_and_those_of_a_copy_once(tmp_path, monkeypatch):
    artifact, *_ = stored(tmp_path)
    hashed = []
    hash_file = integrity.hash_file
    monkeypatch.setattr(integrity, "hash_file", lambda path: hashed.append(path.name) or hash_file(path))
    assert find_artifact(artifact.path) and hashed == [], "not after the build, which has hashed them"
    copy = tmp_path / "elsewhere" / "x"
    shutil.copytree(artifact.path, copy)
    assert find_artifact(copy) and sorted(hashed) == ["hello.txt", "rows.jsonl"]
    assert find_artifact(copy) and len(hashed) == 2
    (copy / "hello.txt").touch()
    assert find_artifact(copy) and hashed[2:] == ["hello.txt"]


def test_files_that_were_all_checked_need_not_be_hashed_again_except_the_damaged_ones(tmp_path, monkeypatch):
    artifact, *_ = stored(tmp_path)
    copy, files = tmp_path / "elsewhere" / "x", artifact.manifest["files"]
    shutil.copytree(artifact.path, copy)
    assert not [*integrity.damages(copy, files, {})]
    hashed = []
    hash_file = integrity.hash_file
    monkeypatch.setattr(integrity, "hash_file", lambda path: hashed.append(path.name) or hash_file(path))
    assert find_artifact(copy) and hashed == []
    wrong = {**files, "hello.txt": hashlib.sha256(b"jello").hexdigest()}
    assert [*integrity.damages(copy, wrong, {})] == ["hello.txt is not what was written"]
    assert sorted(hashed) == ["hello.txt", "rows.jsonl"], "each, whatever is remembered"
    assert find_artifact(copy) and hashed[2:] == ["hello.txt"], "the damaged one was not remembered"


def test_a_manifest_with_another_hash_counts_although_the_file_was_checked_before(tmp_path):
    artifact, *_ = stored(tmp_path)
    manifest = json.loads((artifact.path / MANIFEST).read_text())
    manifest["files"]["hello.txt"] = hashlib.sha256(b"jello").hexdigest()
    (artifact.path / MANIFEST).write_text(json.dumps(manifest))
    assert find_artifact(artifact.path) is None


def test_everything_is_on_the_disk_before_an_artifact_appears(tmp_path, monkeypatch):
    flushed = []
    fsync = os.fsync

    def noted(descriptor):
        assert (tmp_path / "x").exists() == (os.readlink(f"/proc/self/fd/{descriptor}") == str(tmp_path))
        flushed.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    stored(tmp_path)
    assert {"hello.txt", "rows.jsonl", "deep", MANIFEST} < set(flushed)
    assert flushed[-2].startswith(".x.tmp-") and flushed[-1] == tmp_path.name, "its folder, then the one it is in"


@pytest.mark.parametrize(("number", "is_lost"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_that_could_not_be_flushed_is_lost_but_not_where_nothing_can_be(tmp_path, monkeypatch, number, is_lost):
    def fails(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError) if is_lost else nullcontext():
        stored(tmp_path)
    assert (find_artifact(tmp_path / "x") is None) == is_lost and not list(tmp_path.glob("*tmp*"))


def test_a_file_in_an_artifact_s_place_is_replaced(tmp_path):
    (tmp_path / "x").write_text("in the way")
    build_artifact(tmp_path / "x", "thing", {}, write_hello)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.checked", ".x.lock", "x"]
