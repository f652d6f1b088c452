"""The learning rate along a run, and what happens when training diverges."""

import pytest
import torch
from accelerate import Accelerator

from harness.backbones.language_model.policy import load_policy
from harness.core.config import ModelConfig, OptimConfig
from harness.training.base import Job
from harness.training.loop import Diverged, optimise, rate_factor


def factors(total: int, **settings) -> list[float]:
    return [rate_factor(OptimConfig(**settings), taken, total) for taken in range(total)]


def test_the_warm_up_is_linear_and_its_first_step_counts():
    assert factors(5, warmup_steps=3) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_the_schedules_after_the_warm_up():
    """Four steps after one of warm-up: linear 1, 3/4, 1/2, 1/4; cosine (1 + cos(k pi / 4)) / 2."""
    assert factors(5, warmup_steps=1, schedule="linear") == pytest.approx([0.5, 1, 0.75, 0.5, 0.25])
    assert factors(5, warmup_steps=1, schedule="cosine") == pytest.approx([0.5, 1, 0.853553, 0.5, 0.146447], abs=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_a_step_goes_downhill_and_reports_rate_and_norm(tiny_model, tmp_path, optimizer):
    policy = load_policy(tiny_model, ModelConfig(tune="last_layers", last_layers=1))
    ids, job = torch.arange(20)[None], Job(Accelerator(cpu=True), tmp_path)

    def backward(batch, back):
        loss = policy.model(ids, labels=ids).loss
        back(loss, True)
        return {"loss": loss.item()}

    config = OptimConfig(lr=1e-3, optimizer=optimizer, warmup_steps=1, clip=1.0)
    optimise(policy, [None] * 6, backward, config, job, seed=0)
    first, second, *_, last = job.rows
    assert [row["step"] for row in job.rows] == [1, 2, 3, 4, 5, 6]
    assert last["loss"] < first["loss"]
    assert first["learning_rate"] == pytest.approx(5e-4) and second["learning_rate"] == pytest.approx(1e-3)
    assert first["grad_norm"] > 0


def test_a_batch_is_asked_for_when_its_step_begins(tiny_model, tmp_path):
    policy = load_policy(tiny_model, ModelConfig(tune="last_layers", last_layers=1))
    events = []

    class Made:
        def __len__(self):
            return 3

        def __getitem__(self, k):
            events.append(("made", k))
            return torch.arange(k, k + 9)[None]

    def backward(batch, back):
        loss = policy.model(batch, labels=batch).loss
        back(loss, True)
        return {"loss": loss.item()}

    job = Job(Accelerator(cpu=True), tmp_path, lambda done, total: events.append(("done", done)))
    optimise(policy, Made(), backward, OptimConfig(lr=1e-3), job, seed=0)
    assert events == [("made", 0), ("done", 1), ("made", 1), ("done", 2), ("made", 2), ("done", 3)]


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(tiny_model, tmp_path):
    policy = load_policy(tiny_model, ModelConfig(tune="last_layers", last_layers=1))
    before = {name: p.detach().clone() for name, p in policy.trained().items()}

    def backward(batch, back):
        for parameter in policy.trained().values():
            parameter.grad = torch.full_like(parameter, torch.inf)
        return {"loss": 1.0}

    with pytest.raises(Diverged, match=r"step 1: loss 1\.0, gradient norm"):
        optimise(policy, [None], backward, OptimConfig(), Job(Accelerator(cpu=True), tmp_path), seed=0)
    for name, parameter in policy.trained().items():
        torch.testing.assert_close(parameter, before[name])


def test_what_a_step_draws_depends_on_the_seed_and_the_step_alone(tiny_model, tmp_path):
    policy = load_policy(tiny_model, ModelConfig(tune="last_layers", last_layers=1))

    def drawn(seed: int, between: int) -> list[float]:
        draws = []

        def backward(batch, back):
            draws.append(torch.rand(1).item())
            loss = policy.model(batch, labels=batch).loss
            back(loss, True)
            return {"loss": loss.item()}

        job, batches = Job(Accelerator(cpu=True), tmp_path), [torch.arange(9)[None]] * 3
        config = OptimConfig(lr=1e-3)
        optimise(policy, batches, backward, config, job, seed=seed, after_step=lambda step: torch.rand(between))
        return draws

    draws = drawn(seed=0, between=0)
    assert drawn(seed=0, between=5) == draws and len(set(draws)) == 3
    assert not set(drawn(seed=1, between=0)) & set(draws)
    assert drawn(seed=2**63, between=0) == drawn(seed=2**63, between=1)
