"""What the README shows is what happens: its commands, its files, its loss and its table."""

from __future__ import annotations

import re
import shlex
import subprocess

import pandas as pd
import pytest
import torch

from harness.cli.main import main
from harness.experiment.file import load_experiment
from harness.experiment.resolve import resolve
from tests.conftest import REPOSITORY
from tests.tiny_experiment import write_experiment

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [shlex.split(line, comments=True) for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]


def block(kind: str, containing: str) -> str:
    (found,) = [text for k, text in BLOCKS if k == kind and containing in text]
    return found


def harness_commands() -> list[list[str]]:
    return [words[3:] for words in COMMANDS if words[:3] == ["python", "-m", "harness"]]


def test_every_command_of_the_readme_is_known_to_these_tests():
    kinds = {tuple(words[:3]) if words[0] == "python" else tuple(words[:2]) for words in COMMANDS if words}
    assert kinds == {("make", "demo"), ("make", "test"), ("source", ".venv/bin/activate"), ("python", "-m", "harness")}


@pytest.mark.parametrize("target", ["demo", "test", "env"])
def test_the_make_targets_exist(target):
    subprocess.run(["make", "--dry-run", target], cwd=REPOSITORY, check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("arguments", harness_commands(), ids=" ".join)
def test_the_commands_parse_and_their_experiments_expand(arguments, monkeypatch, capsys):
    """The runs themselves take minutes: tests/test_demo.py runs the demo's file on a smaller budget."""
    monkeypatch.chdir(REPOSITORY)
    command, *rest = arguments
    if command == "losses":
        assert main(arguments) == 0 and "rpo_paired" in capsys.readouterr().out
        return
    experiment, *overrides = rest
    if any("my_loss.py" in override for override in overrides):
        return  # run for real below
    assert resolve(load_experiment(experiment, overrides)).points


@pytest.mark.slow
def test_the_loss_of_the_readme_registers_and_runs(tmp_path, tiny_model, tiny_encoder, monkeypatch):
    (tmp_path / "my_loss.py").write_text(block("python", "# my_loss.py"))
    (arguments,) = [a for a in harness_commands() if "plugins=[my_loss.py]" in a]
    path = write_experiment(tmp_path, tiny_model, tiny_encoder, losses={"dpo": {}})
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(path), *arguments[2:]]) == 0
    frame = pd.read_csv(tmp_path / "results" / "tiny" / "leaderboard.csv")
    rows = frame.query("loss == 'dpo_per_token' and task == 'hh'")
    assert sorted(rows.settings) == ["beta=1.0", "beta=3.0"] and (rows.status == "ok").all()


def test_the_notebook_example_gives_one_value_per_pair():
    *setup, last = block("python", "from losses import PreferenceBatch, get_loss").strip().splitlines()
    scope: dict = {}
    exec("\n".join(setup), scope)
    values = eval(last.split("#")[0], scope)
    assert values.shape == torch.Size([2]) and values.isfinite().all()


def test_the_example_file_loads(tmp_path):
    path = tmp_path / "example.yaml"
    path.write_text(block("yaml", "seeds:"))
    resolved = resolve(load_experiment(path))
    assert len(resolved.points) == 3 + 12  # three betas, and the registered grid of rpo_paired


def test_the_leaderboard_shown_is_the_one_that_a_run_left():
    shown = re.search(r"<!-- leaderboard -->\n(.*?)<!-- /leaderboard -->", README, flags=re.DOTALL).group(1).strip()
    generated = (REPOSITORY / "results" / "rpo_vs_dpo" / "leaderboard.md").read_text(encoding="utf-8")
    assert shown.startswith("|") and shown in generated


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://arxiv.org/") or (REPOSITORY / target).exists(), target
