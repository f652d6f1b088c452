"""A run that is killed and started again leaves the same files as an uninterrupted one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.core.store import partial_folder, read_json, read_jsonl
from harness.experiment.plan import Plan
from harness.run.stages.train import train
from harness.run.worker import Worker
from tests.conftest import REPOSITORY
from tests.planned import plan_of
from tests.tiny_experiment import run, write_experiment

# A loss that kills its own process at call number $KILL_AT. There is one call at the check of step 0, one per step, and
# one per batch of an evaluation. It couples examples, so a cut batch takes two passes. The test writes NAME in front of
# it: the loss whose rows it returns, RPO's or PPO's (which has a value head).
FATAL = '''
import os, signal
from losses import get_loss, register_loss

rows = get_loss(NAME)
calls = 0


@register_loss("fatal", data=rows.data, needs=rows.needs, couples_examples=True)
def fatal(batch, *, beta: float = 0.1):
    """Return another loss's rows; kill the process at one call."""
    global calls
    calls += 1
    if str(calls) == os.environ.get("KILL_AT"):
        os.kill(os.getpid(), signal.SIGKILL)
    return rows(batch)
'''


def start(path: Path, results: Path, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "harness", "run", str(path), f"results={results}"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL,
    )


def killed_in_sft(path: Path, results: Path, step: int) -> None:
    """Start a run and kill it as soon as the checkpoint of an SFT step exists."""
    process = start(path, results)
    while process.poll() is None and not list((results / "store").glob(f"sft/*.partial/step-{step:08d}")):
        time.sleep(0.02)
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL


def trained(results: Path) -> list[tuple[dict[str, torch.Tensor], list[dict]]]:
    """Return weights and log (without its times) of the SFT policy and of the policy trained with the loss."""
    plan = read_json(results / "tiny" / "plan.json")
    (key,) = (cell["key"] for cell in plan["cells"] if cell["loss"] == "fatal")
    (sft,) = (results / "store" / "sft").glob("*/tensors.safetensors")
    folders = [sft.parent, results / "tiny" / "cells" / key / "train"]
    return [
        (
            load_file(folder / "tensors.safetensors"),
            [{**row, "seconds": None} for row in read_jsonl(folder / "metrics.jsonl")],
        )
        for folder in folders
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "kills"),
    [
        ("rpo_paired", ("9", "6", "7")),  # in the loss of step 4, in the evaluation after it, in the loss of step 5
        ("ppo_offline", ("9",)),  # its value head is restored as well
    ],
)
def test_a_run_that_is_killed_at_any_step_ends_bit_for_bit_as_one_that_is_not(
    loss, kills, tmp_path, tiny_model, tiny_encoder
):
    """LoRA has dropout, so random states matter. Batches are cut into several forward passes."""
    (tmp_path / "fatal.py").write_text(f"NAME = {loss!r}\n{FATAL}")
    lengths = {"max_prompt_tokens": 96, "max_completion_tokens": 32}
    model = {"name": str(tiny_model), "tune": "lora", "lora": {"rank": 4, "dropout": 0.2}}
    optim = {"lr": 1e-3, "optimizer": "adamw", "batch_size": 4, "micro_batch_tokens": 600, "checkpoint_every": "1"}
    path = write_experiment(
        tmp_path,
        tiny_model,
        tiny_encoder,
        model=model,
        tasks={"hh": {"train_pairs": 24, "dev_pairs": 8, "test_prompts": 2, "judge_pairs": 60, **lengths}},
        plugins=[str(tmp_path / "fatal.py")],
        losses={"fatal": {}},
        sft={**optim, "schedule": "cosine"},
        train={**optim, "warmup_steps": 3, "eval_every": 2, "schedule": "linear"},
    )
    assert run(path, f"results={tmp_path / 'whole'}") == 0
    results = tmp_path / "killed"
    killed_in_sft(path, results, step=3)
    for calls in kills:
        assert start(path, results, KILL_AT=calls).wait(timeout=300) == -signal.SIGKILL
    assert list((results / "tiny" / "cells").glob("*/train.partial/step-*")), "killed in the middle of training"
    assert start(path, results).wait(timeout=300) == 0
    assert not list(results.rglob("*.partial")), "what served to resume goes with the end of the run"
    for expected, resumed in zip(trained(tmp_path / "whole"), trained(results), strict=True):
        assert resumed[1] == expected[1]
        assert resumed[0].keys() == expected[0].keys()
        for name, tensor in expected[0].items():
            assert torch.equal(resumed[0][name], tensor), name


class Killed(BaseException):
    """Not an `Exception`, so that nothing treats it as the failure of a cell."""


# Losses whose needs load other models or run extra passes, some of them only on first use.
LAZY = ["kto", "dpo", "bco", "sr_dpo", "dpo+wpo", "rpo_paired", "ppo_offline"]


@pytest.fixture(scope="module")
def dropping(tmp_path_factory, tiny_model, tiny_encoder) -> Plan:
    """Return a plan whose policies are trained with dropout, in several forward passes a step, evaluated at each."""
    lengths = {"max_prompt_tokens": 96, "max_completion_tokens": 32}
    optim = {"lr": 1e-3, "optimizer": "adamw", "batch_size": 4, "micro_batch_tokens": 400, "checkpoint_every": "1"}
    path = write_experiment(
        tmp_path_factory.mktemp("dropping"),
        tiny_model,
        tiny_encoder,
        model={"name": str(tiny_model), "tune": "lora", "lora": {"rank": 2, "dropout": 0.3}},
        tasks={"hh": {"train_pairs": 12, "dev_pairs": 4, "test_prompts": 1, **lengths}},
        seeds=[3],
        losses={loss: {} for loss in LAZY},
        sft=optim,
        train={**optim, "eval_every": 1},
    )
    return plan_of(path)


def ends_of(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Return the trained tensors and the log without its times."""
    rows = read_jsonl(folder / "metrics.jsonl")
    return load_file(folder / "tensors.safetensors"), [{**row, "seconds": None} for row in rows]


@pytest.mark.parametrize("loss", [LAZY[0], *(pytest.param(loss, marks=pytest.mark.slow) for loss in LAZY[1:])])
def test_training_with_dropout_goes_on_from_every_step_bit_for_bit(dropping, loss):
    """Each time in a new worker, which finds the reference's log-probs in the store and so need not load it."""
    (cell,) = (cell for cell in dropping.cells if cell.loss == loss)
    folder = dropping.folder(cell) / "train"

    def nothing(done: int, total: int) -> None:
        pass

    train(Worker(dropping), cell, nothing)
    tensors, log = ends_of(folder)
    steps = sum(row["split"] == "train" for row in log)
    assert steps == 3
    for killed in range(1, steps + 1):
        shutil.rmtree(folder)

        def progress(done: int, total: int, killed: int = killed) -> None:
            if total == steps and done == killed:
                raise Killed

        with pytest.raises(Killed):
            train(Worker(dropping), cell, progress)
        assert partial_folder(folder).exists() == (killed > 1)
        train(Worker(dropping), cell, nothing)
        resumed = ends_of(folder)
        assert resumed[1] == log, f"killed at step {killed}"
        assert all(torch.equal(resumed[0][name], tensor) for name, tensor in tensors.items())
