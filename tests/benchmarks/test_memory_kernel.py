"""benchmarks/memory_kernel.py runs, and the kernel needs far less memory than full logits."""

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


def figures(*arguments: str) -> dict[str, float]:
    """The last line of the benchmark's output, as numbers."""
    done = subprocess.run(
        [sys.executable, "benchmarks/memory_kernel.py", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {name: float(value) for name, value in (f.split("=") for f in done.stdout.splitlines()[-1].split())}


@pytest.mark.slow
def test_the_kernel_needs_at_most_a_quarter_of_the_memory_of_full_logits():
    """6,000 x 32,768 logits are 750 MiB in fp32, and the naive path holds three such tensors at its peak."""
    measured = figures("--tokens", "6000", "--vocabulary", "32768", "--hidden", "32")
    assert measured["naive_mib"] > 2 * 750
    assert measured["ratio_memory"] == pytest.approx(measured["kernel_mib"] / measured["naive_mib"], rel=1e-2)
    assert measured["ratio_memory"] < 0.25
