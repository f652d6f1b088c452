"""Where tests run when the suite runs in several processes (see tests/conftest.py)."""

from __future__ import annotations

from tests.conftest import GROUPS, REPOSITORY, group_of


def test_every_group_is_of_tests_that_are_there():
    for start in GROUPS:
        path, _, function = start.partition("::")
        assert (REPOSITORY / path).exists(), path
        assert not function or f"\ndef {function}" in (REPOSITORY / path).read_text(encoding="utf-8"), start


def test_a_group_is_told_by_the_beginning_of_a_test_s_name():
    assert group_of("tests/benchmarks/test_benchmarks.py::test_a[b]") == "all cores"
    assert group_of("tests/training/test_layout.py::test_two_processes_end_at_the_same_weights[copies]") == "all cores"
    assert group_of("tests/training/test_layout.py::test_ten_steps[dpo]").endswith("::test_ten_steps[dpo]")
