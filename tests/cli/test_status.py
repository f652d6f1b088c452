"""The command status: what is done, under way, failed and left, from the results folder alone."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from harness.cli.main import main
from harness.core.store import read_json
from harness.reporting.status import experiment_status
from tests.conftest import REPOSITORY
from tests.tiny_experiment import write_experiment


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """Return a copy of the finished run's results that a test may change."""
    shutil.copytree(finished.parent / "results", tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def status(finished, capsys):
    def status(results: Path, *options: str) -> str:
        capsys.readouterr()
        assert main(["status", str(finished), f"results={results}", *options]) == 0
        return capsys.readouterr().out

    return status


def cell_of(results: Path, settings: str) -> Path:
    (folder,) = [
        path.parent
        for path in results.glob("tiny/cells/*/cell.json")
        if settings == read_json(path)["loss"] + str(read_json(path)["settings"].get("beta", ""))
    ]
    return folder


def replace_by_the_sft_policy(train: Path) -> None:
    shutil.rmtree(train)
    shutil.copytree(cell_of(train.parents[3], "sft") / "train", train)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda train: (train / "artifact.json").write_text(""), "artifact.json cannot be read"),
        (lambda train: (train / "artifact.json").write_text('{"files": 3}'), "artifact.json cannot be read"),
        (lambda train: (train / "metrics.jsonl").write_text("{}"), "metrics.jsonl has 2 bytes and was written with"),
        (lambda train: (train / "tensors.safetensors").unlink(), "tensors.safetensors is missing"),
        (replace_by_the_sft_policy, "artifact.json names the inputs of another cell"),
    ],
)
def test_what_is_damaged_is_to_do_again_and_named_and_the_rest_is_shown(copied, status, damage, said):
    folder = cell_of(copied, "dpo0.5")
    damage(folder / "train")
    out = " ".join(status(copied).split())
    assert f"damaged; the next run makes them anew: hh/dpo/beta=0.5/0: train: {said}" in out
    stages = {one["key"]: one["stages"] for one in json.loads(status(copied, "--json"))["each"]}[folder.name]
    assert [stage["state"] for stage in stages] == ["to do", "done", "done", "done", "done"]


def test_a_finished_run_says_what_failed_and_why_and_nothing_else_is_left_of_the_others(finished, status):
    out = status(finished.parent / "results")
    assert "experiment tiny: 3 of 4 cells done, 1 failed" in out
    rows = {words[1]: words[2:] for line in out.splitlines() if (words := line.split())[:1] == ["hh"]}
    assert rows["sft"] == ["1", "1/1", "2/2", "2/2", "done"] and rows["dpo"] == ["2", "2/2", "4/4", "4/4", "done"]
    assert rows["fails"] == ["1", "0/1", "0/2", "0/2", "failed"]
    (why,) = [line for line in out.splitlines() if "ValueError" in line]
    assert "hh/fails/beta=0.1/0: train: ValueError: no [bold]gradient [31m" in why and "\x1b" not in out
    assert "hh: train x 1: " in out and "by the median of 2" in out


def test_it_needs_no_torch(finished):
    code = f"""
import sys
from harness.cli.main import main
assert main(["status", {str(finished)!r}]) == 0
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, capture_output=True)


def test_what_is_left_is_the_median_of_the_same_stage_of_the_same_task(finished, copied, status):
    for stage in ("sample-hh", "judge-hh"):
        shutil.rmtree(cell_of(copied, "dpo0.5") / stage)
    printed = json.loads(status(copied, "--json"))
    assert printed["cells"] == {"done": 2, "under way": 0, "failed": 1, "to do": 1}
    took = [read_json(path)["seconds"] for path in copied.glob("tiny/cells/*/sample-hh/artifact.json")]
    (left,) = [left for left in printed["left"] if left["name"] == "sample-hh"]
    assert (left["count"], left["measured"]) == (2, 2), "of the cell that failed too"
    assert left["seconds"] == pytest.approx(2 * statistics.median(took))
    assert printed["seconds_left"] == pytest.approx(sum(left["seconds"] for left in printed["left"]))


def test_what_was_never_measured_is_said_to_be_unknown(copied, status):
    for path in copied.glob("tiny/cells/*/judge-alpaca_eval"):
        shutil.rmtree(path)
    out = status(copied)
    assert "left: not known yet, more than" in out and "hh: judge-alpaca_eval x 4: never measured" in out


def test_under_way_is_what_a_process_holds_the_lock_of_and_interrupted_what_none_does(copied, status):
    cell = cell_of(copied, "dpo0.5")
    shutil.rmtree(cell / "train")
    (cell / "train.partial/step-00000002").mkdir(parents=True)
    (cell / ".train.tmp-0123").mkdir()
    with FileLock(cell / ".train.lock"):
        out = status(copied)
    assert "2 of 4 cells done, 1 under way, 1 failed" in out
    (line,) = [line for line in out.splitlines() if "newest checkpoint" in line]
    assert line.strip().startswith("hh/dpo/beta=0.5/0: train, for ") and "at step 2" in line and cell.name in line
    out = status(copied)
    assert "under way" not in out and "interrupted; the next run goes on from there:" in out
    assert "1 to do" in out


def test_samples_of_another_decoding_are_still_to_do(copied, status):
    plan = read_json(copied / "tiny/plan.json")
    plan["decoding"]["temperature"] = 0.5
    (copied / "tiny/plan.json").write_text(json.dumps(plan))
    assert "0 of 4 cells done" in status(copied)


def test_before_the_plan_is_written_it_says_what_is_made_for_it(finished, tmp_path, status):
    (tmp_path / "store/preference-models/.0123.tmp-4567").mkdir(parents=True)
    with FileLock(tmp_path / "store/preference-models/.0123.lock"):
        out = status(tmp_path)
        printed = json.loads(status(tmp_path, "--json"))
    assert "tiny: no plan yet" in out and "shared: preference-models 0123, for " in out
    assert printed["each"] == [] and list(printed["under_way_in_store"]) == ["preference-models 0123"]


def test_what_cannot_be_asked(finished, tmp_path, capsys):
    assert main(["status", str(finished), "seeds=[1]"]) == 2
    assert "only name= and results= count" in capsys.readouterr().err
    assert main(["status", str(finished), f"results={tmp_path}"]) == 2
    assert "run it first" in capsys.readouterr().err


@pytest.mark.slow
def test_while_another_process_runs_the_experiment(tmp_path, tiny_model, tiny_encoder):
    optim = {"lr": 1e-3, "optimizer": "adamw", "batch_size": 8, "epochs": 20}
    judge = {"kind": "gold", "reward": "tests.tiny_experiment:length"}
    path = write_experiment(tmp_path, tiny_model, tiny_encoder, losses={"dpo": {}}, train=optim, judge=judge)
    command = [sys.executable, "-m", "harness", "run", str(path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL) as process:
        seen = []
        while process.poll() is None:
            if (tmp_path / "results/tiny/plan.json").is_file():
                seen.append(experiment_status(tmp_path / "results/tiny"))
            time.sleep(0.02)
        assert process.returncode == 0
    counts = [(status.count("done"), status.count("under way")) for status in seen]
    assert (0, 1) in counts and (1, 1) in counts, "each cell was seen at work"
    assert experiment_status(tmp_path / "results/tiny").left == ()


def test_the_sft_policy_is_known_from_the_plan_before_a_cell_is_trained(copied, status):
    for path in copied.glob("tiny/cells/*"):
        shutil.rmtree(path)
    (shared,) = json.loads(status(copied, "--json"))["shared"]
    assert (shared["task"], shared["state"]) == ("hh", "done")
    shutil.rmtree(copied / "store/sft")
    printed = json.loads(status(copied, "--json"))
    assert [shared["state"] for shared in printed["shared"]] == ["to do"]
    assert [left["count"] for left in printed["left"] if left["name"] == "sft"] == [1]


def test_nothing_is_left_of_a_finished_experiment_whose_sft_policy_was_deleted(copied, status):
    plan = read_json(copied / "tiny/plan.json")
    plan["cells"] = [cell for cell in plan["cells"] if cell["loss"] != "fails"]
    (copied / "tiny/plan.json").write_text(json.dumps(plan))
    shutil.rmtree(copied / "store/sft")
    assert "nothing is left to do" in status(copied)
