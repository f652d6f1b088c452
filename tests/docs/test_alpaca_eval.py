"""docs/alpaca-eval.md: its judges can be made, and its commands run."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict

import pytest
import yaml

from harness.cli.main import main, parser
from harness.core.config import ExperimentConfig
from harness.experiment.file import merged
from harness.experiment.resolve import resolve_judge
from tests.conftest import REPOSITORY

BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (REPOSITORY / "docs/alpaca-eval.md").read_text(encoding="utf-8"), re.DOTALL)
COMMANDS = [
    shlex.split(line)[3:] for kind, text in BLOCKS if kind == "bash" for line in text.splitlines() if line.strip()
]


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "yaml"])
def test_the_judges_of_the_page_can_be_made(text):
    sections = yaml.safe_load(text)
    choice = resolve_judge(sections["judge"])
    choice.kind.check(choice.options)
    assert asdict(choice.options)["engine"] == "harness"
    merged(ExperimentConfig, {"tasks": sections.get("tasks", {})}, "docs/alpaca-eval.md")


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_the_commands_of_the_page_parse_and_those_without_an_endpoint_run(arguments, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    assert parser().parse_args(arguments)
    if arguments[0] == "alpaca-lc":
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert "length_controlled_winrate" in out or re.search(r"length-controlled +\d", out)
