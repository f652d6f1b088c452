"""A written results folder and its leaderboard, shared by the tests that only read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.reporting.leaderboard import build_leaderboard
from harness.reporting.report import write_report
from harness.reporting.results import load_results
from tests.reporting.results_folder import write_example


@pytest.fixture(scope="session")
def example(tmp_path_factory) -> Path:
    """The example's folder, with its report written. Tests read it; those that change it take a copy of their own."""
    folder = write_example(tmp_path_factory.mktemp("results") / "example")
    write_report(folder)
    return folder


@pytest.fixture(scope="session")
def leaderboard(example):
    """The example's leaderboard as a frame."""
    return build_leaderboard(load_results(example))
