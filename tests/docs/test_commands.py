"""Each command of README, CONTRIBUTING and the pages of docs: it parses, its files are there, and the short ones run.

What each page's commands do is tested beside this file (`test_readme`, `test_docs`, `test_your_own`,
`test_alpaca_eval`).
"""

from __future__ import annotations

import pkgutil
import re
import shlex
import subprocess

import pytest

from harness.cli.main import main, parser
from harness.experiment.file import load_experiment
from harness.experiment.plugins import load_plugins
from harness.experiment.resolve import resolve
from tests.conftest import REPOSITORY

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
MADE_BY_THE_READER = ("my_", "experiment.yaml", "outputs.json", "reference.json", "both.csv", "judge.yaml")
LONG = ("run", "pretrain", "show", "export", "verify", "judge", "judge-check", "alpaca-lc")  # and `check --all`


def commands_of(text: str) -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [words for words in lines if words]


COMMANDS = {" ".join(words): words for page in PAGES for words in commands_of(page.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_works(command, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    words = COMMANDS[command]
    if words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], check=True, capture_output=True, timeout=60)
    elif words[:3] == ["python", "-m", "pytest"]:
        assert all((REPOSITORY / word).exists() for word in words[3:])
    elif words[:3] == ["python", "-m", "harness"]:
        harness_command(words[3:], capsys)
    else:  # what they install is tested in test_project and test_your_own
        assert words[0] in ("pip", "source", "export"), command


def harness_command(arguments: list[str], capsys) -> None:
    assert parser().parse_args(arguments)
    command, *rest = arguments
    if any(made in word for word in rest for made in MADE_BY_THE_READER):
        return  # the tests of the page write these files
    files = [word for word in rest if word.endswith(".yaml")]
    if command in ("run", "report", "plan"):
        experiment = load_experiment(rest[0], rest[1:])
        load_plugins(experiment.plugins)
        assert resolve(experiment).points
    elif files:
        assert all((REPOSITORY / file).exists() for file in files)
    elif command not in LONG and "--all" not in rest and "capped_dpo" not in rest:
        assert main(arguments) == 0 and capsys.readouterr().out


def test_the_commands_are_found():
    assert len(COMMANDS) > 25 and "make demo" in COMMANDS and "make env-test" in COMMANDS


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_paths_that_a_page_names_exist(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert target.startswith("https://arxiv.org/") or (REPOSITORY / target).exists(), target
    for path in re.findall(r"`((?:harness|losses|tests|experiments|docs)/[\w/.-]+)`", text):
        assert (REPOSITORY / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_names_of_a_page_exist(page):
    for name in re.findall(r"`((?:harness|losses)\.[a-z_.]+)`", page.read_text(encoding="utf-8")):
        if name.split(".")[1] not in ("losses", "judges", "tasks") or name.count(".") > 1:  # groups of entry points
            assert pkgutil.resolve_name(name), name


def test_the_rooms_that_the_readme_lists_are_those_of_the_tree():
    (listed,) = re.findall(r"## In the code.*?```\n(.*?)```", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL)
    folders = [line.split()[0] for line in listed.splitlines()]
    assert all((REPOSITORY / folder).is_dir() for folder in folders)
    rooms = {f"harness/{path.parent.name}/" for path in (REPOSITORY / "harness").glob("*/__init__.py")}
    assert rooms == {folder for folder in folders if folder.startswith("harness/")}
