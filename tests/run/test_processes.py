"""Several processes share an effective batch: the same policies come out, and one process speaks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.core.record_files import read_failures
from harness.core.store import find_artifact, read_json, read_jsonl
from tests.conftest import REPOSITORY
from tests.deepspeed import launched_with_deepspeed
from tests.run.test_resume import FATAL
from tests.tiny_experiment import FITTED, run, write_experiment

# Two losses that fail: one in both processes, one in the second alone, which the first then waits for.
FAILING = """
import os
from datetime import timedelta
from harness.training import processes as together
from losses import register_loss

together.AGREEMENT = timedelta(seconds=10)

@register_loss("everywhere")
def everywhere(batch, *, beta: float = 0.1):
    raise RuntimeError("the loss has a mistake")

@register_loss("alone")
def alone(batch, *, beta: float = 0.1):
    if os.environ["RANK"] == "1":
        raise RuntimeError("the disk is full")
    return -beta * batch.logratio_margin
"""
LOSSES = {"dpo": {}, "ipo": {}, "rpo_paired": {}, "rpo_unpaired": {}, "kto": {}, "bco": {}}


def policies(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    plan = read_json(folder / "tiny" / "plan.json")
    cells = {c["loss"]: folder / "tiny" / "cells" / c["key"] for c in plan["cells"] if c["loss"] != "sft"}
    return {loss: load_file(cell / "train" / "tensors.safetensors") for loss, cell in cells.items()}


def samples(folder: Path) -> dict[str, list[dict]]:
    return {str(path): read_jsonl(path) for path in folder.rglob("samples.jsonl")}


def run_by_two(path: Path, results: Path, **environment: str) -> subprocess.CompletedProcess:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [*launch, "-m", "harness", "run", str(path), f"results={results}"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.slow
def test_two_processes_train_the_policies_that_one_trains(tmp_path, tiny_model, tiny_encoder):
    path = write_experiment(tmp_path, tiny_model, tiny_encoder, losses=LOSSES, judge=FITTED)
    assert run(path, f"results={tmp_path / 'one'}") == 0
    result = run_by_two(path, tmp_path / "two")
    assert result.returncode == 0, result.stderr[-2000:]
    assert " x 2" in result.stdout, "two processes, and not one twice"
    assert result.stdout.count("results in") == 1, "one process speaks"
    drawn = samples(tmp_path / "two")
    for folder in (tmp_path / "two").rglob("sample-*"):
        shutil.rmtree(folder)
    assert run(path, f"results={tmp_path / 'two'}") == 0
    for name, rows in samples(tmp_path / "two").items():
        assert [r["response"] for r in rows] == [r["response"] for r in drawn[name]], "two draw what one draws"
        assert [r["logp"] for r in rows] == pytest.approx([r["logp"] for r in drawn[name]], rel=1e-4)
    one, two = policies(tmp_path / "one"), policies(tmp_path / "two")
    assert set(one) == set(two) == set(LOSSES)
    for loss in one:
        for name, tensor in one[loss].items():
            torch.testing.assert_close(two[loss][name], tensor, rtol=1e-4, atol=1e-4, msg=f"{loss}: {name}")


@pytest.mark.slow
@pytest.mark.parametrize(("spread", "loss"), [("fsdp", "rpo_paired"), ("deepspeed", "ppo_offline")])
def test_a_policy_spread_over_two_processes_survives_a_kill_and_ends_as_that_of_one(
    tmp_path, tiny_model, tiny_encoder, spread, loss
):
    """From SFT to the samples, with fewer sequences in a batch than passes are shared by, so that some are empty."""
    launch = launched_with_deepspeed() if spread == "deepspeed" else {"ACCELERATE_USE_FSDP": "true"}
    (tmp_path / "fatal.py").write_text(f"NAME = {loss!r}\n{FATAL}")
    optim = {"lr": 1e-3, "optimizer": "adamw", "batch_size": 3, "micro_batch_tokens": 100, "checkpoint_every": "1"}
    lengths = {"max_prompt_tokens": 96, "max_completion_tokens": 32}
    path = write_experiment(
        tmp_path,
        tiny_model,
        tiny_encoder,
        model={"name": str(tiny_model), "tune": "full"},
        tasks={"hh": {"train_pairs": 9, "dev_pairs": 4, "test_prompts": 3, "judge_pairs": 60, **lengths}},
        plugins=[str(tmp_path / "fatal.py")],
        losses={"fatal": {}},
        sft=optim,
        train=optim,
    )
    assert run(path, f"results={tmp_path / 'one'}") == 0
    assert run_by_two(path, tmp_path / "two", **launch, KILL_AT="8").returncode != 0
    (kept,) = (tmp_path / "two").rglob("train.partial")
    assert list(kept.glob("step-*")), "killed in the middle of training"
    result = run_by_two(path, tmp_path / "two", **launch)
    assert result.returncode == 0, result.stderr[-2000:]
    one, two = policies(tmp_path / "one"), policies(tmp_path / "two")
    for name, tensor in one["fatal"].items():
        torch.testing.assert_close(two["fatal"][name], tensor, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.slow
def test_what_fails_in_all_processes_fails_alone_and_a_process_that_fails_alone_ends_the_run(
    tmp_path, tiny_model, tiny_encoder
):
    (tmp_path / "failing.py").write_text(FAILING)
    path = write_experiment(
        tmp_path,
        tiny_model,
        tiny_encoder,
        plugins=[str(tmp_path / "failing.py")],
        losses={"everywhere": {}, "dpo": {}, "alone": {}, "ipo": {}},
    )
    result = run_by_two(path, tmp_path / "two")
    assert result.returncode != 0
    assert "process 2 of 2 failed where others did not: RuntimeError: the disk is full" in result.stderr
    plan = read_json(tmp_path / "two" / "tiny" / "plan.json")
    cells = {cell["loss"]: tmp_path / "two" / "tiny" / "cells" / cell["key"] for cell in plan["cells"]}
    assert "the loss has a mistake" in read_failures(cells["everywhere"])[0].reason
    assert find_artifact(cells["dpo"] / "train"), "the run went on after it"
    assert "process 2 of 2" in read_failures(cells["alone"])[0].reason
    assert not cells["ipo"].exists(), "and ended here, before it hung"
