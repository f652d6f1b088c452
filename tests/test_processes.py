"""Several processes share an effective batch: the same policies come out, and one process speaks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.store import read_json
from tests.experiment import run, write_experiment

REPOSITORY = Path(__file__).resolve().parent.parent
LOSSES = {"dpo": {}, "ipo": {}, "rpo_paired": {}, "rpo_unpaired": {}}


def policies(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    plan = read_json(folder / "tiny" / "plan.json")
    cells = {c["loss"]: folder / "tiny" / "cells" / c["key"] for c in plan["cells"] if c["loss"] != "sft"}
    return {loss: load_file(cell / "train" / "tensors.safetensors") for loss, cell in cells.items()}


@pytest.mark.slow
def test_two_processes_train_the_policies_that_one_trains(tmp_path, tiny_model, tiny_encoder):
    path = write_experiment(tmp_path, tiny_model, tiny_encoder, losses=LOSSES)
    assert run(path, f"results={tmp_path / 'one'}") == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*launch, "-m", "harness", "run", str(path), f"results={tmp_path / 'two'}"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert " x 2" in result.stdout, "two processes, and not one twice"
    assert result.stdout.count("results in") == 1, "one process speaks"
    one, two = policies(tmp_path / "one"), policies(tmp_path / "two")
    assert set(one) == set(two) == set(LOSSES)
    for loss in one:
        for name, tensor in one[loss].items():
            torch.testing.assert_close(two[loss][name], tensor, rtol=1e-4, atol=1e-4, msg=f"{loss}: {name}")
