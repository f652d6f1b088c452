"""`find_build` reads from an artifact's lock and folders whether it is being built, and changes nothing."""

import os
import time

from filelock import FileLock

from harness.core.builds import find_build
from harness.core.store import build_artifact, partial_folder


def test_nothing_begun_and_all_done_are_no_builds(tmp_path):
    assert find_build(tmp_path / "train") is None
    build_artifact(tmp_path / "train", "train", {}, lambda folder: (folder / "a").touch())
    assert find_build(tmp_path / "train") is None


def test_it_runs_while_it_is_built_and_says_its_newest_checkpoint(tmp_path):
    path, builds = tmp_path / "train", []

    def build(folder):
        (folder / "a").touch()
        for step in (4, 12):
            (partial_folder(path) / f"step-{step:08d}").mkdir(parents=True)
        then = time.time() - 60
        os.utime(folder / "a", (then, then))
        builds.append(find_build(path))

    build_artifact(path, "train", {}, build)
    (under_way,) = builds
    assert under_way.running and under_way.step == 12
    assert 59 < under_way.seconds < 90 and under_way.idle < 30


def test_what_a_killed_process_left_is_interrupted(tmp_path):
    (partial_folder(tmp_path / "train") / "step-00000003").mkdir(parents=True)
    lock = tmp_path / ".train.lock"
    lock.touch()
    build = find_build(tmp_path / "train")
    assert not build.running and build.step == 3
    with FileLock(lock, timeout=0):  # find_build has not kept the lock
        assert find_build(tmp_path / "train").running
