"""A run resumed from a checkpoint ends bit for bit like an uninterrupted one. Damaged checkpoints are noticed."""

import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from harness.backbones.language_model.policy import load_policy
from harness.backbones.language_model.scoring import BatchSource
from harness.backbones.language_model.sft import train_sft
from harness.core.config import ModelConfig, OptimConfig, SftConfig
from harness.training.base import Job
from harness.training.checkpoint import Checkpoints, Snapshot
from harness.training.loop import Diverged, optimise
from tests.training.conftest import random_sequences

INPUTS = {"experiment": 1}
STEPS = 7


class Killed(Exception):
    pass


def train(model, checkpoints, *, killed_after=None, tune="lora", optimizer="adamw", lr=1e-2):
    """Seven steps with dropout, a warm-up and a running value; return weights, log and running value."""
    config = ModelConfig(tune=tune, last_layers=1)
    config.lora.dropout = 0.3
    policy = load_policy(model, config, seed=5)
    running = {"mean": 0.0}

    def backward(batch, back):
        policy.train()
        loss = policy.model(batch, labels=batch).loss
        back(loss, True)
        running["mean"] = 0.9 * running["mean"] + 0.1 * loss.item()
        return {"loss": loss.item()}

    def after_step(step):
        if step == killed_after:
            raise Killed

    settings = OptimConfig(lr=lr, optimizer=optimizer, warmup_steps=3, schedule="cosine")
    batches = [torch.arange(k, k + 12)[None] for k in range(STEPS)]
    job = Job(Accelerator(cpu=True), Path(), checkpoints=checkpoints)
    optimise(policy, batches, backward, settings, job, seed=5, after_step=after_step, kept={"running": running})
    log = [{key: value for key, value in row.items() if key != "seconds"} for row in job.rows]
    return {name: p.detach().clone() for name, p in policy.trained().items()}, log, running


def steps_in(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


@pytest.fixture(scope="module")
def whole(tiny_model):
    """Return the end of a run that is not interrupted."""
    return train(tiny_model, None)


@pytest.fixture(scope="module")
def interrupted(tiny_model, tmp_path_factory):
    """Return the checkpoints that a run leaves when it is killed after its fifth step."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(Killed):
        train(tiny_model, Checkpoints(folder, INPUTS, "2"), killed_after=5)
    return folder


@pytest.fixture
def partial(interrupted, tmp_path):
    """Return a copy of `interrupted` that a test may damage."""
    return shutil.copytree(interrupted, tmp_path / "partial")


def assert_same(one, other):
    assert one[1:] == other[1:]
    assert one[0].keys() == other[0].keys()
    for name, tensor in one[0].items():
        assert torch.equal(tensor, other[0][name]), name


@pytest.mark.parametrize(("tune", "optimizer"), [("lora", "adamw"), ("last_layers", "rmsprop")])
def test_a_run_interrupted_at_any_step_ends_as_one_that_was_not(tiny_model, tmp_path, tune, optimizer):
    """Weights, log, learning rates and running value are the same, with LoRA's dropout too."""
    settings = {"tune": tune, "optimizer": optimizer}
    whole = train(tiny_model, None, **settings)
    assert len(whole[1]) == STEPS
    for step in range(1, STEPS + 1):
        checkpoints = Checkpoints(tmp_path / str(step), INPUTS, "2")
        with pytest.raises(Killed):
            train(tiny_model, checkpoints, killed_after=step, **settings)
        torch.manual_seed(99)  # the process may draw other random numbers in between
        resumed = train(tiny_model, Checkpoints(tmp_path / str(step), INPUTS, "2"), **settings)
        assert_same(resumed, whole)


def test_at_most_one_interval_is_lost(tiny_model, tmp_path):
    with pytest.raises(Killed):
        train(tiny_model, Checkpoints(tmp_path, INPUTS, "2"), killed_after=6)
    latest = Checkpoints(tmp_path, INPUTS, "2").latest()
    assert latest.step == 4, "it was killed before the checkpoint of step 6 was written"
    assert steps_in(tmp_path) == [2, 4]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lambda path: path.unlink()])
@pytest.mark.parametrize("file", ["tensors.safetensors", "values.json", "manifest.json"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_used(partial, damage, file):
    damage(partial / "step-00000004" / file)
    with pytest.warns(UserWarning, match="step-00000004 is damaged"):
        assert Checkpoints(partial, INPUTS, "1").latest().step == 2


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tiny_model, partial, whole):
    flip_a_bit(partial / "step-00000004" / "tensors.safetensors")
    with pytest.warns(UserWarning, match="damaged"):
        assert_same(train(tiny_model, Checkpoints(partial, INPUTS, "3")), whole)
    assert steps_in(partial) == [3, 6], "the damaged one is not among the two that stay"


def test_where_both_are_damaged_the_run_begins_again(tiny_model, partial, whole):
    for folder in partial.iterdir():
        truncate(folder / "tensors.safetensors")
    with pytest.warns(UserWarning, match="damaged"):
        assert_same(train(tiny_model, Checkpoints(partial, INPUTS, "2")), whole)


def test_a_checkpoint_of_other_inputs_is_not_used(tmp_path):
    Checkpoints(tmp_path, INPUTS, "1").write(Snapshot(3, {"weights/a": torch.ones(2)}, {"kept": {}}))
    assert Checkpoints(tmp_path, INPUTS, "1").latest().step == 3
    assert Checkpoints(tmp_path, {"experiment": 2}, "1").latest() is None


def test_what_a_kill_leaves_half_written_is_not_found_and_goes(tmp_path):
    half = tmp_path / ".step-00000009.tmp-dead"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    checkpoints = Checkpoints(tmp_path, INPUTS, "1")
    assert checkpoints.latest() is None
    checkpoints.write(Snapshot(1, {"weights/a": torch.ones(2)}, {"kept": {}}))
    assert steps_in(tmp_path) == [1]


def test_a_run_that_diverges_does_so_again_without_the_steps_before_it(tiny_model, tmp_path):
    for _ in range(2):
        checkpoints = Checkpoints(tmp_path, INPUTS, "1")
        with pytest.raises(Diverged, match="step"):
            train(tiny_model, checkpoints, lr=1e38, optimizer="rmsprop", tune="last_layers")


def test_by_the_clock_they_take_no_more_than_a_fiftieth_of_the_time(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("harness.training.checkpoint.time.monotonic", lambda: now)
    checkpoints = Checkpoints(tmp_path, INPUTS, "10s")
    assert not checkpoints.due(1)
    now = 10.0
    assert checkpoints.due(2)
    checkpoints._cost = 1.0
    now = 49.9
    assert not checkpoints.due(3)
    now = 50.0
    assert checkpoints.due(4)


@pytest.mark.parametrize("every", ["0", "1h"])
def test_none_is_written_before_its_time(tiny_model, tmp_path, every):
    train(tiny_model, Checkpoints(tmp_path / "partial", INPUTS, every))
    assert not (tmp_path / "partial").exists()


def test_sft_goes_on_with_its_counters(tiny_model, tmp_path):
    def sft(folder, partial, stop=None):
        folder.mkdir()
        policy = load_policy(tiny_model, ModelConfig(tune="last_layers", last_layers=1))
        source = BatchSource(random_sequences(12, 500, seed=0), pad_token=2, budget=10**6)
        config = SftConfig(batch_size=4, epochs=2, lr=1e-3)

        def progress(done, total):
            if done == stop:
                raise Killed

        checkpoints = Checkpoints(partial, INPUTS, "1")
        train_sft(policy, range(24), source, config, Job(Accelerator(cpu=True), folder, progress, checkpoints))

    sft(tmp_path / "whole", tmp_path / "a")
    with pytest.raises(Killed):
        sft(tmp_path / "killed", tmp_path / "b", stop=7)
    assert steps_in(tmp_path / "b") == [5, 6]
    shutil.rmtree(tmp_path / "b" / "step-00000005")
    sft(tmp_path / "resumed", tmp_path / "b")
    one, other = (load_file(tmp_path / name / "tensors.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    one, other = ((tmp_path / name / "summary.json").read_text().split('"seconds"')[0] for name in ("whole", "resumed"))
    assert one == other
