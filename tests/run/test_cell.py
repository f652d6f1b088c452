"""A cell is a value, and running one is a unit of work: idempotent, its failure a value too."""

from __future__ import annotations

import pickle
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.core.record_files import read_failures, read_records
from harness.core.records import Judgement
from harness.core.store import read_json, read_jsonl, write_json
from harness.experiment.plan import Plan
from harness.run.cell import failure_of, run_cell, stages_of
from harness.run.stages import train
from harness.run.stages.base import Target
from harness.run.worker import Worker
from tests.planned import plan_of
from tests.tiny_experiment import write_experiment


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, tiny_model, tiny_encoder) -> Path:
    return write_experiment(tmp_path_factory.mktemp("cells"), tiny_model, tiny_encoder, losses={"dpo": {}})


@pytest.fixture(scope="module")
def plan(experiment) -> Plan:
    return plan_of(experiment)


@pytest.fixture(scope="module")
def worker(plan) -> Worker:
    return Worker(plan)


def artifacts(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("artifact.json")}


def test_a_cell_is_told_by_its_key_and_can_be_sent_to_another_process(experiment, plan):
    again = plan_of(experiment).cells
    assert plan.cells == again and len({*plan.cells, *again}) == len(plan.cells)
    assert pickle.loads(pickle.dumps(plan.cells)) == plan.cells
    assert [plan.cell(cell.key) for cell in plan.cells] == plan.cells
    other = plan_of(experiment, "seeds=[1]").cells
    assert not set(other) & set(plan.cells)
    assert [cell.point for cell in other] == [cell.point for cell in plan.cells], "they differ in the seed alone"


def test_the_stages_of_a_cell_are_training_and_then_each_task_s_evaluation(plan):
    names = [(stage.name, target.words) for stage, target in stages_of(plan, plan.cells[1])]
    assert names == [
        ("sft", ""),
        ("frozen layers", "train"),
        ("frozen layers", "dev"),
        ("reference", "train"),
        ("reference", "dev"),
        ("train", ""),
        ("sample", "hh"),
        ("judge", "hh"),
        ("sample", "alpaca_eval"),
        ("judge", "alpaca_eval"),
    ]


def test_a_cell_that_is_done_is_done_and_nothing_of_it_is_the_driver_s(plan, worker):
    key = plan.cells[1].key
    assert run_cell(plan, key, worker) == []
    before = artifacts(plan.experiment.folder)
    assert run_cell(plan, key, worker) == []
    assert artifacts(plan.experiment.folder) == before
    assert [path.name for path in plan.experiment.folder.iterdir()] == ["cells"], "no plan.json, no manifest.json"


def replaced_by(path: Path, content: bytes) -> None:
    """Put another file in the place of one that policies in memory may be mapped to: cutting that would end them."""
    path.unlink()
    path.write_bytes(content)


def cut_the_tensors(sft: Path) -> None:
    tensors = sft / "tensors.safetensors"
    replaced_by(tensors, tensors.read_bytes()[:100])


def leave_out_the_tensors(sft: Path) -> None:
    manifest = read_json(sft / "artifact.json")
    del manifest["files"]["tensors.safetensors"]
    write_json(sft / "artifact.json", manifest)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut_the_tensors, leave_out_the_tensors])
def test_a_damaged_sft_policy_and_reference_are_made_again(plan, worker, recwarn, damage):
    cell = plan.cells[1]
    assert run_cell(plan, cell.key, worker) == []
    (sft,) = plan.store.root.glob("sft/[!.]*")
    before = read_json(sft / "artifact.json")["files"]
    damage(sft)
    for values in plan.store.root.glob("reference/*/values.npy"):
        replaced_by(values, b"")
    shutil.rmtree(plan.folder(cell) / "train")
    assert run_cell(plan, cell.key, Worker(plan)) == []
    assert read_json(sft / "artifact.json")["files"]["tensors.safetensors"] == before["tensors.safetensors"]
    said = [str(warning.message) for warning in recwarn if "is damaged: " in str(warning.message)]
    assert sum("values.npy is not what was written; it is made again" in line for line in said) == 2
    assert len(said) == 2 + (damage is cut_the_tensors)


def test_the_dev_questions_are_sampled_and_judged_beside_the_test_questions_where_they_are_asked_for(plan, worker):
    cell = plan.cells[1]
    assert run_cell(plan, cell.key, worker, splits=("dev", "test")) == []
    folder = plan.folder(cell)
    dev, test = (read_jsonl(folder / name / "samples.jsonl") for name in ("sample-dev-hh", "sample-hh"))
    questions = plan.tasks["hh"].prepared.questions
    assert [row["id"] for row in dev] == [q.id for q in questions["dev"].questions] and len(dev) > len(test)
    assert not {row["id"] for row in dev} & {row["id"] for row in test}
    assert {row["id"] for row in read_jsonl(folder / "judge-dev-hh" / "judgements.jsonl")} == {row["id"] for row in dev}
    assert not list(folder.glob("*-dev-alpaca_eval")), "a benchmark has no questions to select on"


BREAKS = """
from dataclasses import dataclass
from harness.evaluation.base import register_judge

@dataclass
class Options:
    pass

class Judge:
    id, agreement = "breaks", None

    def judge(self, comparisons, progress):
        raise ValueError("no verdict\\nand more")

@register_judge("breaks", options=Options)
def make(options, context):
    return Judge()
"""


def test_a_failure_is_a_value_with_its_stage_task_judge_and_reason(tmp_path, tiny_model, tiny_encoder):
    (tmp_path / "breaks.py").write_text(BREAKS)
    judges = {"a": {"kind": "breaks"}, "b": {"kind": "gold", "reward": "tests.tiny_experiment:length"}}
    plugins = [str(tmp_path / "breaks.py")]
    path = write_experiment(tmp_path, tiny_model, tiny_encoder, losses={"dpo": {}}, judges=judges, plugins=plugins)
    plan = plan_of(path)
    failures = run_cell(plan, plan.cells[0].key, Worker(plan))
    assert [failure.where for failure in failures] == ["judge-hh@a", "judge-alpaca_eval@a"]
    failure = failures[0]
    assert (failure.stage, failure.task, failure.judge) == ("judge", "hh", "a")
    assert failure.reason == "ValueError: no verdict" and "and more" in failure.traceback
    folder = plan.folder(plan.cells[0])
    assert read_failures(folder) == failures
    assert sorted(path.name for path in folder.glob("judge-*")) == ["judge-alpaca_eval@b", "judge-hh@b"]
    (of_dev,) = run_cell(plan, plan.cells[0].key, Worker(plan), splits=("dev",))
    assert (failure.split, failure.where) == ("test", "judge-hh@a")
    assert (of_dev.split, of_dev.where) == ("dev", "judge-dev-hh@a")


EXITS = """
import sys
from losses import register_loss

@register_loss("exits")
def exits(batch, *, beta: float = 0.1):
    sys.exit(0)

def reward(prompt, response):
    raise SystemExit("done")
"""


def test_code_that_calls_sys_exit_fails_its_own_cell_or_judgement_alone(
    tmp_path, tiny_model, tiny_encoder, monkeypatch
):
    (tmp_path / "it_exits.py").write_text(EXITS)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins = [str(tmp_path / "it_exits.py")]
    judge = {"kind": "gold", "reward": "it_exits:reward"}
    path = write_experiment(tmp_path, tiny_model, tiny_encoder, losses={"exits": {}}, judge=judge, plugins=plugins)
    plan = plan_of(path)
    sft, exits = plan.cells
    worker = Worker(plan)
    (failure,) = run_cell(plan, exits.key, worker)
    assert (failure.stage, failure.reason) == ("train", "SystemExit: 0")
    assert {failure.stage for failure in run_cell(plan, sft.key, worker)} == {"judge"}, "it has no verdict at all"
    judged = read_records(Judgement, plan.folder(sft) / "judge-hh")
    assert {(one.status, one.detail) for one in judged} == {("failed", "SystemExit: done")}


def test_a_failure_holds_no_secret(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "s3cr3t-0123456789")
    try:
        raise ValueError("cannot read s3cr3t-0123456789")
    except ValueError as error:
        failure = failure_of(error, train.STAGE, Target())
    assert failure.reason == "ValueError: cannot read (A_TOKEN)" and "s3cr3t" not in failure.traceback


def test_a_shared_stage_that_failed_is_tried_once_and_fails_each_cell_of_its_task(tmp_path, tiny_model, tiny_encoder):
    plan = plan_of(write_experiment(tmp_path, tiny_model, tiny_encoder, losses={"dpo": {}}))
    plan.store.root.mkdir(parents=True)
    (plan.store.root / "sft").write_text("in the way")
    worker, seen = Worker(plan), []

    @contextmanager
    def show(label: str):
        seen.append(label)
        yield lambda done, total: None

    failures = [run_cell(plan, cell.key, worker, show) for cell in plan.cells]
    assert [[failure.stage for failure in failed] for failed in failures] == [["sft"], ["sft"]]
    assert failures[0] == failures[1] and seen == ["hh: sft"]
    (plan.store.root / "sft").unlink()
    assert run_cell(plan, plan.cells[1].key, Worker(plan)) == []
