"""The end of training: a run killed between any two file operations goes on, with the policies it kept on the way."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from harness.core.config import TrainConfig
from harness.core.store import build_artifact, find_artifact, partial_folder
from harness.training.base import Job
from harness.training.checkpoint import Checkpoints
from harness.training.preference import kept_folder, train_preference
from losses import get_loss
from tests.training.test_contract import Killed, bigram, split

INPUTS = {"loss": "dpo"}
STEPS, SHARES = 15, [0.2, 0.6]
KILLED = 9


def train(artifact: Path, progress=lambda done, total: None) -> None:
    """Make a trained policy, with two kept on the way."""

    def build(folder: Path) -> None:
        splits = {"train": split(bigram(0), 0), "dev": split(bigram(0), 1)}
        config = TrainConfig(lr=0.05, optimizer="adamw", epochs=3, batch_size=4, eval_every=0, keep_at=SHARES)
        job = Job(Accelerator(cpu=True), folder, progress, Checkpoints(partial_folder(artifact), INPUTS, "4"))
        loss = get_loss("dpo")
        train_preference(bigram(0), loss, loss.settings(), splits, config, 0, job)

    build_artifact(artifact, "train", INPUTS, build)


def tables(artifact: Path) -> list[torch.Tensor]:
    """Return the policies kept on the way, and the one at the end."""
    return [load_file(kept_folder(artifact, share) / "tensors.safetensors")["table"] for share in [*SHARES, None]]


def stop_at(step: int):
    def progress(done: int, total: int) -> None:
        if done == step:
            raise Killed

    return progress


def end_before_operation(number: int, counting: list[int]) -> None:
    """End this process, as a kill does, before it changes a file for the n-th time since `counting` got an item."""

    def hook(event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if counting and (writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link")):
            counting.append(1)
            if len(counting) > number:
                os._exit(KILLED)

    sys.addaudithook(hook)


def killed_before_operation(number: int, artifact: Path) -> bool:
    """Train in another process that ends before its n-th change of a file after the last step; whether it got there."""
    if (child := os.fork()) == 0:
        counting: list[int] = []
        end_before_operation(number, counting)
        train(artifact, lambda done, total: counting.append(1) if done == total else None)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, KILLED)
    return status == KILLED


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Return a policy whose training was not interrupted."""
    artifact = tmp_path_factory.mktemp("whole") / "train"
    train(artifact)
    return artifact


@pytest.fixture(scope="module")
def near_the_end(tmp_path_factory) -> Path:
    """Return the folder of a run that was killed before its last step, after it had kept both policies."""
    artifact = tmp_path_factory.mktemp("killed") / "train"
    with pytest.raises(Killed):
        train(artifact, stop_at(STEPS - 1))
    return artifact.parent


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of Python 3.12, about fork
@pytest.mark.filterwarnings("error")  # no checkpoint is found damaged
def test_a_run_killed_between_any_two_changes_of_files_at_its_end_goes_on(whole, near_the_end, tmp_path):
    operations = 0
    for number in range(1, 200):
        artifact = shutil.copytree(near_the_end, tmp_path / str(number)) / "train"
        if not killed_before_operation(number, artifact):
            break
        operations = number
        train(artifact)
        assert find_artifact(artifact, INPUTS)
        for resumed, expected in zip(tables(artifact), tables(whole), strict=True):
            assert torch.equal(resumed, expected), f"killed before operation {number}"
    assert 10 < operations < 199, "it has killed from the first change to the last"


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-1])])
def test_without_a_policy_that_it_kept_no_checkpoint_after_that_is_used(whole, near_the_end, tmp_path, damage):
    artifact = shutil.copytree(near_the_end, tmp_path / "cell") / "train"
    damage(kept_folder(partial_folder(artifact), SHARES[1]) / "tensors.safetensors")
    with pytest.warns(UserWarning, match=r"step-00000012 is damaged .*at-0\.6"):
        train(artifact)
    for resumed, expected in zip(tables(artifact), tables(whole), strict=True):
        assert torch.equal(resumed, expected)
