"""The project's licence, citation, dependencies and Makefile, and its installation as a dependency."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cli.test_main import harness
from tests.conftest import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMPORTED_AS = {"pyyaml": "yaml", "scikit-learn": "sklearn", "alpaca-eval": "alpaca_eval"}
# Imported packages that are not dependencies, and the files that import them. Each file says what to install.
OPTIONAL = {
    "deepspeed": {"harness/training/zero.py"},
    "vllm": {"harness/backbones/language_model/vllm.py"},
    "trl": {"benchmarks/contenders.py", "benchmarks/memory_vs_trl.py"},
}
OURS = {"harness", "losses", "tests", *(path.stem for path in (REPOSITORY / "benchmarks").glob("*.py"))}


def imported_by(file: Path) -> set[str]:
    imported = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imported.add(node.module.split(".")[0])
    return imported - OURS - set(sys.stdlib_module_names)


def test_nothing_imports_a_package_that_running_does_not_install():
    names = [re.split(r"[<>=;\[ ]", requirement)[0] for requirement in PROJECT["dependencies"]]
    installed = {IMPORTED_AS.get(name, name) for name in names}
    others: dict[str, set[str]] = {}
    for root in ("harness", "losses", "experiments", "benchmarks"):
        for file in (REPOSITORY / root).rglob("*.py"):
            for name in imported_by(file) - installed:
                others.setdefault(name, set()).add(str(file.relative_to(REPOSITORY)))
    assert others == OPTIONAL


def test_every_dependency_is_pinned():
    pins = re.findall(r"^([\w.-]+)==", (REPOSITORY / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    pinned = {name.lower().replace("_", "-") for name in pins}
    named = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"], "deepspeed", "uv"]
    assert {re.split(r"[<>=;\[ ]", name)[0].lower().replace("_", "-") for name in named} <= pinned


def test_the_licence_is_apache_2():
    text = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    theirs = (REPOSITORY / "harness/tasks/data/licences/pandalm.Apache-2.0.txt").read_text(encoding="utf-8")

    def terms(licence: str) -> list[str]:
        return licence.split("END OF TERMS AND CONDITIONS")[0].split()

    assert terms(text) == terms(theirs) and PROJECT["license"] == "Apache-2.0"


def test_the_citation_is_valid_and_of_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]


def dry_run(target: str) -> str:
    command = ["make", "--dry-run", "--always-make", target]
    return subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=60).stdout


def test_the_demo_installs_no_test_tools_and_the_tests_do():
    assert "[dev]" not in dry_run("demo") and "deepspeed" not in dry_run("demo")
    for target in ("test", "test-quick", "lint"):
        assert "[dev]" in dry_run(target) and "deepspeed" in dry_run(target)


@pytest.mark.parametrize("broken", ["pip", "uv"])
def test_an_interrupted_build_leaves_no_stamp_and_pip_takes_over_from_uv(broken, tmp_path):
    """Stand-ins replace python and uv. The broken one exits with an error."""
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("")
    programs, log = tmp_path / ".venv" / "bin", tmp_path / "log"
    programs.mkdir(parents=True)
    python = f'echo "pip $*" >> {log}; case "$*" in *--editable*) exit {int(broken == "pip")};; esac'
    for name, script in (("python", python), ("uv", f'echo "uv $*" >> {log}; exit 1')):
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    made = subprocess.run(["make", "env"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    said = log.read_text()
    assert "uv pip install" in said and "pip -m pip install" in said and "--editable ." in said
    assert (made.returncode == 0) == (tmp_path / ".venv" / ".env").exists() == (broken == "uv")
    if broken == "uv":
        again = subprocess.run(["make", "env"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert again.returncode == 0 and log.read_text() == said, "what is built is not built again"


@pytest.mark.slow
def test_it_installs_as_a_dependency_with_all_its_files(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in ("harness", "losses"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(site), str(source)], check=True, capture_output=True, timeout=300)
    for folder in ("harness", "losses"):
        files = {p.relative_to(REPOSITORY) for p in (REPOSITORY / folder).rglob("*") if p.is_file()}
        files = {path for path in files if "__pycache__" not in path.parts}
        assert not [str(path) for path in files if not (site / path).is_file()]
    listed = harness("losses", "--json", cwd=tmp_path, PYTHONPATH=str(site))
    assert listed.returncode == 0 and str(site) in listed.stdout, listed.stderr
