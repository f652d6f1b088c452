"""The examples of docs/your-own-judge.md and docs/your-own-task.md work as plugin files and as installed packages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from harness.core.errors import UserError
from harness.evaluation.base import JUDGES, Comparison, JudgeContext, Judgement
from harness.evaluation.judges.preference_model import FEWEST_PAIRS
from harness.experiment.file import load_experiment
from harness.experiment.plugins import load_plugins
from harness.experiment.resolve import resolve, resolve_judge
from harness.tasks import TASKS, Message
from harness.tasks.splits import HASHED, REST
from tests.conftest import REPOSITORY
from tests.tiny_experiment import write_experiment

JUDGE, TASK = (
    re.findall(r"```(\w+)\n(.*?)```", (REPOSITORY / "docs" / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for page in ("your-own-judge.md", "your-own-task.md")
)
TASK_SIZES = {
    "train_pairs": 16,
    "dev_pairs": 4,
    "test_prompts": 4,
    "max_prompt_tokens": 96,
    "max_completion_tokens": 32,
}


def block(page: list[tuple[str, str]], kind: str, containing: str) -> str:
    (text,) = [text for k, text in page if k == kind and containing in text]
    return text


def write_plugin(folder: Path, name: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text(block(JUDGE if name == "my_judge" else TASK, "python", f"# {name}.py"))
    return path


def write_answers(path: Path, n: int = 60) -> Path:
    """Write the page's row of data `n` times, each time with another question."""
    row = json.loads(block(TASK, "json", "answers"))
    path.write_text("".join(json.dumps({**row, "question": f"{i}. {row['question']}"}) + "\n" for i in range(n)))
    return path


@pytest.fixture
def installed(tmp_path):
    """Return a function that installs a page's package with pip into a separate folder and returns the folder."""

    def install(name: str, page: list[tuple[str, str]]) -> Path:
        source, target = tmp_path / f"source-{name}", tmp_path / f"site-{name}"
        source.mkdir()
        write_plugin(source, name)
        (source / "pyproject.toml").write_text(block(page, "toml", "# pyproject.toml"))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        subprocess.run([*command, "--target", str(target), str(source)], check=True, capture_output=True, timeout=120)
        return target

    return install


def test_the_judge_prefers_the_response_that_repeats_itself_less(tmp_path):
    load_plugins([str(write_plugin(tmp_path, "my_judge"))])
    choice = resolve_judge(yaml.safe_load(block(JUDGE, "yaml", "# my_experiment.yaml"))["judge"])
    choice.kind.check(choice.options)
    context = JudgeContext("hh", [], [], "nobody's", None, "none", None, tmp_path, "test")  # type: ignore[arg-type]
    judge = choice.kind.make(choice.options, context)
    assert judge.id == "repetition:n=2,margin=0.02@v1" and judge.agreement is None
    prompt, calls = (Message("user", "Hello"),), []
    texts = [("a b c d", "a b a b"), ("a b a b", "a b c d"), ("x y z", "a b c"), ("", "a b a b")]
    verdicts = judge.judge([Comparison(str(i), prompt, *pair) for i, pair in enumerate(texts)], calls.append)
    assert verdicts == [
        Judgement("0", "ok", 1.0),
        Judgement("1", "ok", 0.0),
        Judgement("2", "tie", 0.5),
        Judgement("3", "ok", 1.0),
    ]
    assert sum(calls) == 4
    with pytest.raises(UserError, match=r"judge\.n must be at least 1, got 0"):
        choice.kind.check(resolve_judge({"kind": "repetition", "n": 0}).options)


@pytest.mark.parametrize("text", [text for kind, text in JUDGE if kind == "yaml"])
def test_the_judge_sections_of_the_page_are_understood(text, tmp_path):
    load_plugins([str(write_plugin(tmp_path, "my_judge"))])
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump({"tasks": {"hh": {}}, "losses": {"dpo": {}}, **yaml.safe_load(text)}))
    assert "repetition" in {choice.kind.name for choice in resolve(load_experiment(path)).judges.values()}


@pytest.mark.parametrize("text", [text for kind, text in TASK if kind == "yaml"])
def test_the_task_sections_of_the_page_are_understood(text, tmp_path):
    load_plugins([str(write_plugin(tmp_path, "my_task"))])
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump({"losses": {"dpo": {}}, **yaml.safe_load(text)}))
    assert resolve(load_experiment(path)).tasks


def test_the_task_reads_its_file_and_says_what_is_wrong_with_it(tmp_path):
    from harness.core.config import TaskConfig

    load_plugins([str(write_plugin(tmp_path, "my_task"))])
    load, file = TASKS.get("voted_answers").load, write_answers(tmp_path / "answers.jsonl")
    lone = {"question": "Alone?", "answers": [{"text": "Yes.", "votes": 1}]}
    with file.open("a") as more:
        more.write(json.dumps(lone) + "\n")
    data = load(TaskConfig(data=str(file)))
    assert data.counts["rows read"] == 61 and data.counts["rows dropped, fewer than two answers"] == 1
    assert data.train and data.dev and data.test and data.judge_fit and data.judge_test
    pair = data.train[0]
    assert pair.scores == (41, -3) and pair.chosen.startswith("Run git reset") and data.test[0].baseline == pair.chosen
    file.write_text('{"title": "How?"}\n')
    with pytest.raises(UserError, match=r"answers.jsonl:1: no column 'answers'.*accepted: question and answers"):
        load(TaskConfig(data=str(file)))
    with pytest.raises(UserError, match="has no packaged data"):
        load(TaskConfig())


def test_the_number_of_rows_that_the_page_asks_for_is_enough(tmp_path):
    from harness.core.config import TaskConfig

    page = (REPOSITORY / "docs" / "your-own-task.md").read_text(encoding="utf-8")
    assert HASHED == {"train": 0.50, "judge_fit": 0.75, "dev": 0.85, "test": 1.0}
    assert "50 % of the prompts go to `train`, 25 % to `judge_fit`, 10 % to\n`dev` and 15 % to `test`" in page
    assert REST == {"judge_fit": 0.10, "dev": 0.15, "train": 1.0} and "5 % to `dev`" in page
    assert f"at least {FEWEST_PAIRS} pairs" in page
    load_plugins([str(write_plugin(tmp_path, "my_task"))])
    load = TASKS.get("voted_answers").load
    for words, fewest in (("about (\\d+) distinct prompts", FEWEST_PAIRS), ("about (\\d+) are enough", 1)):
        (n,) = re.findall(words, page)
        data = load(TaskConfig(data=str(write_answers(tmp_path / "answers.jsonl", int(n)))))
        assert data.train and data.dev and data.test and len(data.judge_fit) >= fewest


def test_a_plugin_whose_name_is_taken_is_refused_with_both_places(tmp_path):
    write_plugin(tmp_path, "my_judge")
    (tmp_path / "copied.py").write_text((tmp_path / "my_judge.py").read_text())
    with pytest.raises(UserError, match=r"the judge 'repetition' is registered twice: at .*my_judge\.py.*copied\.py"):
        load_plugins([str(tmp_path / "my_judge.py"), str(tmp_path / "copied.py")])


@pytest.mark.slow
def test_judge_and_task_from_files_run_in_an_experiment_and_the_judge_is_measured(
    tmp_path, tiny_model, tiny_encoder, command
):
    for name in ("my_judge", "my_task"):
        write_plugin(tmp_path, name)
    sections = yaml.safe_load(block(JUDGE, "yaml", "# my_experiment.yaml"))
    tasks = {"voted_answers": {"data": str(write_answers(tmp_path / "answers.jsonl")), **TASK_SIZES}}
    path = write_experiment(
        tmp_path,
        tiny_model,
        tiny_encoder,
        plugins=["my_judge.py", "my_task.py"],
        tasks=tasks,
        losses={"dpo": {"beta": 0.1}},
        judge=sections["judge"],
    )
    planned = command("plan", str(path), cwd=tmp_path)
    assert planned.returncode == 0 and "voted_answers" in planned.stdout, planned.stdout + planned.stderr
    result = command("run", str(path), cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    frame = pd.read_csv(tmp_path / "results" / "tiny" / "leaderboard.csv")
    assert set(frame.loss) == {"sft", "dpo"} and set(frame.judge) == {"repetition:n=2,margin=0.02@v1"}
    assert (frame.status == "ok").all() and (frame.judge_agreement_labels == "votes of the site's users").all()
    # The commands judge-check and judge take the same file.
    (checked,) = [line.split()[3:] for line in commands(JUDGE, "judge-check") if "my_experiment" in line]
    checked = [str(path) if word == "my_experiment.yaml" else word for word in checked]
    # The judge is made with the pairs of the task that is named: this experiment's, not HH's.
    measured = command(*checked, "--task", "voted_answers", "--limit", "60", "--json", cwd=tmp_path)
    assert measured.returncode == 0, measured.stdout + measured.stderr
    assert json.loads(measured.stdout)["n"] == 60
    for name in ("outputs", "reference"):
        rows = [{"instruction": "Say something.", "output": {"outputs": "a b c", "reference": "a b a b"}[name]}]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    (judged,) = [line.split()[3:] for line in commands(JUDGE, "judge ")]
    judged = [str(path) if word == "my_experiment.yaml" else word for word in judged]
    result = command(*judged, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def commands(page: list[tuple[str, str]], word: str) -> list[str]:
    """Return the harness commands of a page that begin with a word."""
    lines = [line for kind, text in page if kind == "bash" for line in text.splitlines()]
    return [line for line in lines if line.startswith(f"python -m harness {word}")]


@pytest.mark.slow
def test_the_accuracy_that_the_page_states_is_measured(tmp_path, command):
    for name, text in (("my_judge.py", "python"), ("my_experiment.yaml", "yaml")):
        (tmp_path / name).write_text(block(JUDGE, text, f"# {name}"))
    arguments = ["--judge", "my_experiment.yaml", "--data", "llmbar", "--json"]
    result = json.loads(command("judge-check", *arguments, cwd=tmp_path).stdout)
    accuracy, low, high = (f"{100 * result[name]:.1f}" for name in ("accuracy", "low", "high"))
    page = (REPOSITORY / "docs" / "your-own-judge.md").read_text(encoding="utf-8")
    assert f"{accuracy} % [{low}, {high}] of LLMBar's comparisons" in page
    assert f"on {100 * result['subsets']['Natural']['accuracy']:.1f} % of the\nnatural ones" in page


@pytest.mark.slow
def test_the_package_of_the_page_registers_its_judge(installed, tmp_path, command, on_the_path):
    (line,) = [line for line in commands(JUDGE, "judge-check") if "my_experiment" not in line]
    arguments = [*line.split()[3:], "--limit", "40", "--json"]
    assert "unknown judge 'repetition'" in command(*arguments, cwd=tmp_path).stderr
    on_the_path(installed("my_judge", JUDGE))
    result = command(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout)["judge"] == "repetition:n=2,margin=0.02@v1"


@pytest.mark.slow
def test_the_package_of_the_page_registers_its_task(
    installed, tmp_path, tiny_model, tiny_encoder, command, on_the_path
):
    tasks = {"voted_answers": {"data": str(write_answers(tmp_path / "answers.jsonl")), **TASK_SIZES}}
    path = write_experiment(tmp_path, tiny_model, tiny_encoder, tasks=tasks, losses={"dpo": {"beta": 0.1}})
    assert "unknown task 'voted_answers'" in command("plan", str(path), cwd=tmp_path).stderr
    on_the_path(installed("my_task", TASK))
    planned = command("plan", str(path), cwd=tmp_path)
    assert planned.returncode == 0 and "voted_answers" in planned.stdout, planned.stdout + planned.stderr


def test_an_entry_point_that_cannot_be_loaded_is_named_in_one_line(tmp_path, command, on_the_path):
    site = tmp_path / "site"
    (site / "broken-1.dist-info").mkdir(parents=True)
    (site / "broken-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    on_the_path(site)
    for group, kind in (("harness.judges", "judge"), ("harness.tasks", "task")):
        (site / "broken-1.dist-info" / "entry_points.txt").write_text(f"[{group}]\nmine = no_such_module_{kind}\n")
        result = command("losses", "--json", cwd=tmp_path)
        assert result.returncode == 0 and json.loads(result.stdout), "a broken package stops no command"
        assert result.stderr.count("\n") == 1
        assert result.stderr.startswith(f"warning: entry point mine of {group} (no_such_module_{kind}): ModuleNotFound")
        assert result.stderr.endswith("; it is left out\n")


def test_the_pages_describe_every_field_and_argument():
    judge, task = (" ".join(text for text in page) for page in _pages())
    for name in ("id", "status", "preference", "detail", "flipped", "first", "usage"):
        assert f"`{name}`" in judge, name
    for name in JudgeContext.__dataclass_fields__:
        assert f"context.{name}" in judge, name
    for name in ("keep", "baseline", "template", "trains", "prompt_suffix", "outputs", "generates"):
        assert f"`{name}`" in task, name
    assert "repetition" not in JUDGES  # the page's example is not a built-in judge


def _pages() -> list[list[str]]:
    folder = REPOSITORY / "docs"
    return [
        (folder / name).read_text(encoding="utf-8").splitlines() for name in ("your-own-judge.md", "your-own-task.md")
    ]
