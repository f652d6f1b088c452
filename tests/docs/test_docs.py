"""The docs: the generated page is current, and docs/your-own-loss.md's examples work as a file and as a package."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from harness.cli.main import main, parser
from harness.evaluation.base import JUDGES
from harness.evaluation.judges.template import FOLDER as TEMPLATES
from harness.experiment.file import load_experiment
from harness.experiment.resolve import resolve, resolve_judge
from harness.run.judging import read_judge
from losses import list_losses, register_loss
from tests.cli.test_main import harness
from tests.conftest import REPOSITORY
from tests.tiny_experiment import write_experiment

BUILT_IN = list_losses()  # at collection, nothing else is registered yet
DOCS = REPOSITORY / "docs"
OWN = (DOCS / "your-own-loss.md").read_text(encoding="utf-8")


def block(kind: str, containing: str) -> str:
    texts = [text for k, text in re.findall(r"```(\w+)\n(.*?)```", OWN, flags=re.DOTALL) if k == kind]
    (text,) = [text for text in texts if containing in text]
    return text


@pytest.fixture(scope="module")
def page() -> str:
    """Return docs/losses.md as the command writes it now, in a process without plugins."""
    result = harness("losses", "--markdown")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    return result.stdout


def test_the_page_of_losses_is_current(page):
    current = (DOCS / "losses.md").read_text(encoding="utf-8")
    assert current == page, "run: python -m harness losses --markdown > docs/losses.md"


def test_every_built_in_loss_says_its_equation_its_source_and_what_it_was_checked_against(capsys):
    assert main(["losses", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [loss["name"] for loss in listed] == BUILT_IN
    for loss in listed:
        for part in ("equation", "source", "checked_against"):
            assert loss[part], f"{loss['name']} has no {part}"


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            page = DOCS / name if name else path
            assert page.exists() and (not anchor or anchor in anchors(page)), target


def anchors(page: Path) -> set[str]:
    """Return what links to the headings of a page end with, as GitHub makes it."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


PRINTED = {
    (page, re.findall(r'@register_loss\(\s*"(\w+)"', text)[0]): text
    for page in ("README.md", "docs/your-own-loss.md")
    for text in re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    if "@register_loss(" in text
}


def test_the_losses_that_the_pages_print_are_found():
    assert [name for _, name in PRINTED] == ["dpo_per_token", "capped_dpo", "even_length_dpo"]


@pytest.mark.parametrize("printed", PRINTED, ids=" ".join)
def test_every_loss_that_a_page_prints_passes_the_checks(printed, tmp_path, command):
    (tmp_path / "printed.py").write_text(PRINTED[printed])
    result = command("check", "printed.py", cwd=tmp_path)
    assert result.returncode == 0 and "1 checked, all checks passed" in result.stdout, result.stdout + result.stderr


def test_the_page_lists_every_argument_of_the_decorator():
    arguments = [name for name in inspect.signature(register_loss).parameters if name != "name"]
    assert [name for name in arguments if f"| `{name}` |" not in OWN] == []


@pytest.mark.slow
def test_the_need_of_the_docs_is_planned_and_run(tmp_path, tiny_model, tiny_encoder, command):
    (tmp_path / "my_need.py").write_text(block("python", "# my_need.py"))
    sections = yaml.safe_load(block("yaml", "my_need.py"))
    path = write_experiment(tmp_path, tiny_model, tiny_encoder, **sections)
    assert "2 cells, 0 of them trained" in command("plan", str(path), cwd=tmp_path).stdout
    result = command("run", str(path), cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    frame = pd.read_csv(tmp_path / "results" / "tiny" / "leaderboard.csv")
    assert (frame.status == "ok").all() and set(frame.query("task == 'hh'").loss) == {"sft", "even_length_dpo"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Install the docs' package with pip into a separate folder and return the folder."""
    source = tmp_path_factory.mktemp("source")
    target = tmp_path_factory.mktemp("site")
    (source / "my_loss.py").write_text(block("python", "# my_loss.py"))
    (source / "pyproject.toml").write_text(block("toml", "# pyproject.toml"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(target), str(source)], check=True, capture_output=True, timeout=120)
    return target


@pytest.mark.slow
def test_the_package_of_the_docs_registers_its_loss(installed, tmp_path, command):
    paths = f"{REPOSITORY}:{installed}"
    listed = json.loads(harness("losses", "--json", cwd=tmp_path, PYTHONPATH=paths).stdout)
    (loss,) = [loss for loss in listed if loss["name"] == "capped_dpo"]
    assert loss["defined_at"].startswith(str(installed / "my_loss.py"))
    assert harness("check", "capped_dpo", cwd=tmp_path, PYTHONPATH=paths).returncode == 0
    assert "unknown loss 'capped_dpo'" in command("check", "capped_dpo", cwd=tmp_path).stderr


@pytest.mark.slow
def test_losses_from_a_file_a_package_and_the_harness_run_in_one_experiment(
    installed, tmp_path, tiny_model, tiny_encoder, command, on_the_path
):
    on_the_path(installed)
    losses, plugins = {"dpo": {}, "capped_dpo": "grid", "capped_dpo+js": {}}, ["my_weighting.py", "my_modifier.py"]
    for file in plugins:
        (tmp_path / file).write_text(block("python", f"# {file}"))
        losses |= yaml.safe_load(block("yaml", f"plugins: [{file}]"))["losses"]
    path = write_experiment(tmp_path, tiny_model, tiny_encoder, plugins=plugins, losses=losses)
    result = command("run", str(path), cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    frame = pd.read_csv(tmp_path / "results" / "tiny" / "leaderboard.csv")
    counts = frame.query("task == 'hh'").groupby("loss").size().to_dict()
    assert counts == {"sft": 1, "dpo": 1, "capped_dpo": 4, "capped_dpo+js": 1, "dpo+scaled": 2, "rpo": 3}
    assert (frame.status == "ok").all()


def test_the_experiment_of_the_docs_loads(tmp_path):
    (tmp_path / "example.yaml").write_text(block("yaml", "capped_dpo: grid"))
    assert load_experiment(tmp_path / "example.yaml").plugins == ["my_loss.py"]


JUDGING = (DOCS / "judging.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("line", re.findall(r"^python -m harness (.*)$", JUDGING, flags=re.MULTILINE))
def test_the_commands_on_judging_parse_and_their_judges_exist(line):
    options = parser().parse_args(shlex.split(line))
    spec = getattr(options, "judge", "")
    if spec and not spec.endswith(".yaml"):
        resolve_judge(read_judge(spec)[0])


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", JUDGING, flags=re.DOTALL))
def test_the_judge_sections_on_judging_are_understood(text, tmp_path):
    parsed = yaml.safe_load(text)
    section = {"judge": parsed} if "kind" in parsed else parsed
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump({"tasks": {"hh": {}}, "losses": {"dpo": {}}, **section}))
    assert resolve(load_experiment(path)).judges


def test_the_page_on_judging_names_every_judge_and_template():
    for name in [*JUDGES, *(path.stem for path in TEMPLATES.glob("*.txt"))]:
        assert f"`{name}`" in JUDGING or f"kind: {name}" in JUDGING, name
