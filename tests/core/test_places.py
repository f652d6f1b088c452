"""Places that a command will write are checked before its work, and left as they were."""

import os
import subprocess
import sys

import pytest

from harness.core.errors import UserError
from harness.core.places import check_output, check_results, check_writable
from tests.conftest import REPOSITORY


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    check_writable(tmp_path / "a" / "b", "the folder", "name another")
    check_output(tmp_path / "out.jsonl", "the file", "name another")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "below", "further/below"])
def test_a_file_in_the_place_of_a_folder(tmp_path, below):
    (tmp_path / "place").write_text("a file")
    with pytest.raises(UserError, match=r"results folder .*place.* cannot be written \(Not a directory: .*place\)"):
        check_results(tmp_path, tmp_path / "place" / below)


@pytest.mark.parametrize("below", ["", "below"])
def test_a_link_to_nothing(tmp_path, below):
    (tmp_path / "place").symlink_to(tmp_path / "gone" / "away")
    with pytest.raises(UserError, match="it is a link to nothing"):
        check_results(tmp_path / "place" / below)


def test_a_link_to_a_folder_is_a_folder(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "place").symlink_to(tmp_path / "there")
    check_results(tmp_path / "place" / "below")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    (tmp_path / "place").mkdir(mode=0o500)
    with pytest.raises(UserError, match="Permission denied"):
        check_results(tmp_path / "place" / "below")


def test_a_name_that_no_file_system_takes(tmp_path):
    for name in (300 * "x", "a\0b"):
        with pytest.raises(UserError, match="cannot be written"):
            check_results(tmp_path / name / "below")


def test_a_disk_that_takes_only_an_empty_file(tmp_path):
    """A limit on the size of files stands for the full disk: an empty one can be made, and no byte written."""
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom harness.core.places import check_results\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\ncheck_results(Path(sys.argv[1]))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-B", "-c", code, tmp_path], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert "UserError: results folder" in ended.stderr and "cannot be written (File too large" in ended.stderr


def test_a_file_needs_a_folder_and_a_place_of_its_own(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        check_output(tmp_path, "the file", "name another")
    with pytest.raises(UserError, match=r"there is no folder .*nowhere; name another"):
        check_output(tmp_path / "nowhere" / "out.jsonl", "the file", "name another")
