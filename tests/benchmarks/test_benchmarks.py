"""The benchmarks run, on two pairs, and end with the line of figures that their README promises."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"
README = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)
    for kind, text in re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
    if kind == "bash"
    for line in text.splitlines()
]
FIGURES = {
    "train_vs_trl.py": ["ratio_default", "ratio_precomputed", "ratio_plain", "ratio_shared_prompt"],
    "grid_vs_trl.py": ["ratio_grid"],
    "memory_vs_trl.py": ["memory_default", "memory_precomputed", "memory_plain"],
    "where_time_goes.py": [
        f"matrix_share_{name}"
        for name in ("trl_default", "trl_precomputed", "plain", "ours", "ours_shared_prompt", "trl_fastest")
    ],
    "scaling.py": ["pairs_x8", "completions_x4", "rpo_share_of_step"],
}


def benchmark(script: str, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *options],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=600,
    )


TINY = [
    "--pairs",
    "2",
    "--batch-size",
    "2",
    "--micro-pairs",
    "1",
    "--repeats",
    "1",
    "--threads",
    "1",
    "--scale",
    "tiny",
]
NEEDS_TRL = "TRL is not installed: pip install -c constraints.txt '.[bench]'"


# Runs scripts one after the other, as `python SCRIPT OPTIONS` would, in one process: importing TRL takes longer than
# their work on two pairs. Its last line has the status and the output of each.
IN_ONE_PROCESS = """
import contextlib, io, json, runpy, sys, traceback
ended = {}
for script, options in json.loads(sys.argv[1]).items():
    sys.argv, printed, status = [script, *options], io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        status = end.code
    except Exception:
        status = traceback.format_exc()
    ended[script] = [status, printed.getvalue()]
print()
print(json.dumps(ended))
"""
WITH_TRL = ["train_vs_trl.py", "grid_vs_trl.py", "where_time_goes.py"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> dict[str, tuple[Path, object, str]]:
    """Each script's output folder, exit status and output, on two pairs."""
    scripts = ["scaling.py", *(WITH_TRL if importlib.util.find_spec("trl") else [])]
    folders = {script: tmp_path_factory.mktemp(Path(script).stem) for script in scripts}
    options = {str(BENCHMARKS / script): [*TINY, "--out", str(folder)] for script, folder in folders.items()}
    result = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS, json.dumps(options)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": f"{BENCHMARKS}{os.pathsep}{REPOSITORY}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout.splitlines()[-1])
    return {script: (folders[script], *printed[str(BENCHMARKS / script)]) for script in scripts}


@pytest.mark.slow
@pytest.mark.parametrize("script", ["scaling.py", *WITH_TRL])
def test_a_benchmark_ends_with_its_figures(script, ended):
    if script in WITH_TRL:
        pytest.importorskip("trl", reason=NEEDS_TRL)
    folder, status, printed = ended[script]
    assert status == 0, status
    last = dict(word.split("=") for word in printed.splitlines()[-1].split())
    assert list(last) == FIGURES[script]
    assert all(float(value) > 0 for value in last.values())
    (written,) = folder.glob("*.json")
    measured = json.loads(written.read_text())
    assert list(measured["figures"]) == FIGURES[script] and measured["environment"]["hardware"]["cpus"]


@pytest.mark.slow
def test_the_memory_of_one_contender_is_a_number():
    pytest.importorskip("trl", reason=NEEDS_TRL)
    result = benchmark("memory_vs_trl.py", *TINY, "--only", "ours_shared_prompt")
    assert result.returncode == 0 and 0 < float(result.stdout) < 1000, result.stdout + result.stderr


@pytest.mark.slow
def test_a_plan_of_pairs_has_its_seconds_and_memory(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    planning = importlib.import_module("planning")
    planning.write_pairs(tmp_path / "pairs.jsonl", 20)
    measured = planning.plan(tmp_path, "pairs", planning.PAIRS.format(data=tmp_path / "pairs.jsonl"))
    assert set(measured) == {"seconds", "cpu_seconds", "peak_mib"} and all(value > 0 for value in measured.values())


def test_the_readme_shows_one_command_for_each_benchmark():
    assert {Path(words[1]).name for words in COMMANDS if words[0] == "python"} == {*FIGURES, "report.py"}


@pytest.mark.parametrize("words", [w for w in COMMANDS if w[0] == "python" and "report.py" not in w[1]], ids=" ".join)
def test_the_commands_of_the_readme_parse(words, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    options = importlib.import_module(Path(words[1]).stem).parser().parse_args(words[2:])
    assert options.pairs % options.batch_size == 0 and options.batch_size % options.micro_pairs == 0


def test_pairs_that_do_not_fill_their_batches_are_refused(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--pairs", "10", "--batch-size", "4"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("scaling").main()
    assert ended.value.code == 2 and "--pairs must be a multiple of --batch-size" in capsys.readouterr().err


def test_the_tables_of_results_are_those_of_the_runs(monkeypatch):
    """RESULTS.md between its markers is what report.py writes of results/*.json."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    page = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")
    assert importlib.import_module("report").filled(page) == page, "run: python benchmarks/report.py"
