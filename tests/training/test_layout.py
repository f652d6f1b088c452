"""For every registered loss, 8x1, 4x2, 2x4 and 1x8 (micro-batch x accumulation) train like one batch of 8. So do two
processes, whether each holds a full copy, half of the weights (FSDP) or half of the optimiser (DeepSpeed).

Loss and gradient of one batch are compared for every loss. The code paths of ten steps and of several processes depend
only on a loss's signature, so one loss per signature is enough there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import cache

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from losses import list_losses
from tests.conftest import REPOSITORY
from tests.deepspeed import launched_with_deepspeed
from tests.signatures import one_for_each_signature, signature
from tests.training.layouts import CUTS, EFFECTIVE, LOSSES, flat, small_bench, train

REPRESENTATIVES = one_for_each_signature(LOSSES)
GRADIENT, WEIGHTS = 1e-5, 1e-4  # largest relative differences, in norm


@cache
def in_one_piece(loss: str, steps: int, at_start: bool = False):
    return train(loss, EFFECTIVE, Accelerator(cpu=True), steps=steps, at_start=at_start)


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.slow
@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_are_those_of_the_whole_batch(loss, at_start):
    whole = in_one_piece(loss, 1, at_start)
    passes = [whole.passes]
    for cut in CUTS[1:]:
        trained = train(loss, cut, Accelerator(cpu=True), steps=1, at_start=at_start)
        assert trained.value.item() == pytest.approx(whole.value.item(), rel=GRADIENT), cut
        assert difference(trained.gradient, whole.gradient) < GRADIENT, cut
        passes.append(trained.passes)
    assert passes == sorted(set(passes)) and len(passes) == len(CUTS), "each cut is another one"


def test_every_loss_has_exactly_one_representative():
    seen = [signature(loss) for loss in REPRESENTATIVES]
    assert all(seen.count(signature(loss)) == 1 for loss in LOSSES)
    assert set(list_losses()) <= set(LOSSES) and set(REPRESENTATIVES) <= set(LOSSES)


@pytest.mark.slow
@pytest.mark.parametrize("loss", REPRESENTATIVES)
def test_ten_steps_end_at_the_same_weights(loss):
    whole, start = in_one_piece(loss, 10), flat(small_bench(loss).policy.trained().values())
    assert difference(whole.weights, start) > 30 * WEIGHTS, "it has trained"
    for cut in CUTS[1:]:
        assert difference(train(loss, cut, Accelerator(cpu=True)).weights, whole.weights) < WEIGHTS, cut


@cache
def of_two_processes(ways: str, *losses: str, **environment: str) -> dict[str, torch.Tensor]:
    """Return the tensors that two processes compute for the losses, in one launch."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [*launch, "-m", "tests.training.layouts", f"{folder}/tensors", ways, *losses],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **environment},
            capture_output=True,
            text=True,
            timeout=800,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return load_file(f"{folder}/tensors")


def check(tensors: dict[str, torch.Tensor], way: str, losses: tuple[str, ...]) -> None:
    assert {name.split("/")[0] for name in tensors} == set(losses)
    for loss in losses:
        whole = in_one_piece(loss, 10)
        value, gradient, weights = (tensors[f"{loss}/{way}/{name}"] for name in ("value", "gradient", "weights"))
        assert value.item() == pytest.approx(whole.value.item(), rel=GRADIENT), loss
        assert difference(gradient, whole.gradient) < GRADIENT, loss
        assert difference(weights, whole.weights) < WEIGHTS, loss


@pytest.mark.slow
@pytest.mark.parametrize("way", ["copies", "shards"])
def test_two_processes_end_at_the_same_weights(way):
    check(of_two_processes("copies,shards", *REPRESENTATIVES), way, REPRESENTATIVES)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "losses"), [(1, ("dpo", "rpo_paired", "ppo_offline")), (2, REPRESENTATIVES)])
def test_so_do_two_whose_optimiser_deepspeed_spreads(stage, losses):
    check(of_two_processes("zero", *losses, **launched_with_deepspeed(stage)), "zero", losses)
