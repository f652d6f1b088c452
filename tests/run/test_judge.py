"""The stage `judge`: every response has one verdict, a missing one is asked for again, and none at all is a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.core.record_files import read_failures, read_records
from harness.core.records import Judgement
from harness.run.cell import run_cell
from harness.run.worker import Worker
from tests.planned import plan_of
from tests.rehashed import rehash
from tests.tiny_experiment import run, write_experiment

SAYS = """
from dataclasses import dataclass
from pathlib import Path
from harness.core.records import Judgement
from harness.evaluation.base import register_judge

@dataclass
class Options:
    folder: str

class Says:
    id, agreement = "says", None

    def __init__(self, folder):
        self.folder = folder

    def judge(self, comparisons, progress):
        with open(self.folder / "asked", "a") as file:
            file.writelines(c.id + "\\n" for c in comparisons)
        scope = {"Judgement": Judgement, "comparisons": comparisons}
        exec((self.folder / "answers.py").read_text(), scope)
        return scope["rows"]

@register_judge("says", options=Options)
def make(options, context):
    return Says(Path(options.folder))
"""
GOOD = "rows = [Judgement(c.id, 'ok', 1.0) for c in comparisons]\n"
FAILED = "rows = [Judgement(c.id, 'failed', None, detail='401: no such key') for c in comparisons]\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model, tiny_encoder):
    """The plan of an experiment whose SFT policy is trained and sampled."""
    folder = tmp_path_factory.mktemp("judged")
    (folder / "says.py").write_text(SAYS)
    path = write_experiment(
        folder,
        tiny_model,
        tiny_encoder,
        tasks={"hh": {"train_pairs": 8, "dev_pairs": 4, "test_prompts": 4, "max_prompt_tokens": 64}},
        losses={"dpo": {}},
        judge={"kind": "says", "folder": str(folder)},
        plugins=[str(folder / "says.py")],
    )
    return path


class Judged:
    """Runs the SFT cell with a judge that answers what a test says."""

    def __init__(self, path: Path, folder: Path):
        self.path, self.folder = path, folder
        self.plan, self.worker = None, None

    def __call__(self, answers: str) -> list:
        (self.folder / "answers.py").write_text(answers)
        (self.folder / "asked").unlink(missing_ok=True)
        self.plan = plan_of(self.path, f"judge.folder={self.folder}")
        self.worker = Worker(self.plan)
        return run_cell(self.plan, self.plan.cells[0].key, self.worker)

    @property
    def stage(self) -> Path:
        return self.plan.folder(self.plan.cells[0])

    @property
    def asked(self) -> list[str]:
        file = self.folder / "asked"
        return file.read_text().split() if file.exists() else []

    @property
    def rows(self) -> list[Judgement]:
        return read_records(Judgement, self.stage / "judge-hh")

    @property
    def ids(self) -> list[str]:
        return [q.id for q in self.plan.tasks["hh"].prepared.questions["test"].questions]


@pytest.fixture
def judged(trained, tmp_path) -> Judged:
    judged = Judged(trained, tmp_path)
    assert judged(GOOD) == []
    return judged


def cut(file: Path, rows: int) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:rows]))


def test_every_response_is_asked_about_once(judged):
    assert judged.asked == judged.ids == [row.id for row in judged.rows]
    assert judged(GOOD) == [] and judged.asked == []


@pytest.mark.slow
def test_what_a_judge_leaves_out_has_failed_and_is_alone_asked_for_again(judged):
    assert judged(GOOD + "rows = rows[1:]") == [] and judged.asked == [], "what is there is not asked for again"
    judged.folder.joinpath("other").mkdir()
    other = Judged(judged.path, judged.folder / "other")
    assert other(GOOD + "rows = rows[:1] + rows[2:]") == []
    assert [row.status for row in other.rows] == ["ok", "failed", "ok", "ok"]
    (line,) = other.worker.unjudged
    assert line.endswith(
        "judge-hh: 1 of 4 verdicts are missing (1 failed: the judge gave no judgement); the next run asks for them"
    )
    assert other(GOOD.replace("1.0", "0.0")) == [] and other.asked == other.ids[1:2]
    assert [row.preference for row in other.rows] == [1.0, 0.0, 1.0, 1.0] and other.worker.unjudged == []


@pytest.mark.parametrize("change", ["rows * 2", "rows + [Judgement('nobody asked', 'ok', 1.0)]"])
def test_verdicts_that_nobody_asked_for_fail_the_judge(judged, tmp_path, change):
    (tmp_path / "other").mkdir()
    (failure,) = Judged(judged.path, tmp_path / "other")(GOOD + f"rows = {change}")
    assert failure.where == "judge-hh" and failure.reason.startswith("the judge says gave ")


@pytest.mark.slow
def test_no_verdict_at_all_is_a_failure_with_its_reason(judged, tmp_path):
    (tmp_path / "other").mkdir()
    other = Judged(judged.path, tmp_path / "other")
    (failure,) = other(FAILED)
    assert failure.where == "judge-hh"
    assert failure.reason == "no verdict on any of 4 responses (4 failed: 401: no such key); the next run asks again"
    assert read_failures(other.stage) == [failure] and {row.status for row in other.rows} == {"failed"}
    assert other(GOOD) == [] and read_failures(other.stage) == []


@pytest.mark.slow
def test_rows_that_are_cut_off_or_stand_twice_are_judged_again_and_the_others_stay(judged):
    file = judged.stage / "judge-hh" / "judgements.jsonl"
    cut(file, 3)
    rehash(file.parent)
    assert judged(GOOD) == [] and judged.asked == judged.ids[3:]
    file.write_text(2 * file.read_text())
    rehash(file.parent)
    assert judged(GOOD) == [] and judged.asked == [row.id for row in judged.rows] == judged.ids
    file.write_text('{"id": 3}\n')
    rehash(file.parent)
    assert judged(GOOD) == [] and judged.asked == judged.ids


def test_judgements_that_were_edited_are_judged_again_and_it_is_said(judged, recwarn):
    """Nothing in an edited file can be trusted; of a judge that costs money, answers come from its cache."""
    file = judged.stage / "judge-hh" / "judgements.jsonl"
    file.write_text(file.read_text().replace("1.0", "0.0"))
    assert judged(GOOD) == [] and judged.asked == judged.ids
    assert {row.preference for row in judged.rows} == {1.0}
    said = [str(warning.message) for warning in recwarn if "damaged" in str(warning.message)]
    assert said == [f"{file.parent} is damaged: judgements.jsonl is not what was written; it is made again"]


@pytest.mark.slow
def test_samples_that_were_cut_are_made_again_and_those_that_are_the_same_keep_their_verdicts(judged, recwarn):
    file = judged.stage / "sample-hh" / "samples.jsonl"
    before = file.read_bytes()
    cut(file, 2)
    assert judged(GOOD) == [] and file.read_bytes() == before and judged.asked == []
    (said,) = [str(warning.message) for warning in recwarn if "damaged" in str(warning.message)]
    assert "sample-hh is damaged: samples.jsonl is not" in said


@pytest.mark.slow
def test_the_code_of_a_judge_of_the_user_s_own_is_part_of_what_a_verdict_depends_on(judged, trained):
    plugin = trained.parent / "says.py"
    before = plugin.read_text()
    plugin.write_text(before + "\n# a comment\n")
    assert judged(GOOD) == [] and judged.asked == []
    plugin.write_text(before.replace("read_text()", "read_text() + ''"))
    assert judged(GOOD) == [] and judged.asked == judged.ids
    plugin.write_text(before)


@pytest.mark.slow
def test_a_run_without_a_verdict_ends_with_its_status_and_reason(trained, tmp_path, capsys):
    (tmp_path / "answers.py").write_text(FAILED)
    assert run(trained, f"judge.folder={tmp_path}", "seeds=[0]") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("failed: hh dpo beta=0.1 seed=0: judge-hh: no verdict on any of 4 responses (4 failed")
    (tmp_path / "answers.py").write_text(GOOD + "rows = rows[1:]")
    assert run(trained, f"judge.folder={tmp_path}") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("incomplete: hh dpo beta=0.1 seed=0: judge-hh: 1 of 4 verdicts are missing (1 failed")
    (tmp_path / "answers.py").write_text(GOOD)
    assert run(trained, f"judge.folder={tmp_path}") == 0
    plan = trained.parent / "results" / "tiny" / "plan.json"
    before = plan.read_bytes()
    plan.unlink()
    assert run(trained, f"judge.folder={tmp_path}") == 0 and plan.read_bytes() == before, "though nothing was to do"
