"""What a launch asks for, and what is refused; that shards train as copies do is in test_layout.py."""

import pytest

from harness.core.config import ExperimentConfig, ModelConfig
from harness.core.errors import UserError
from harness.training.sharding import check_launch, sharding_asked
from tests.deepspeed import FOLDER, launched_with_deepspeed


def experiment(tune="full"):
    return ExperimentConfig(model=ModelConfig(tune=tune))


def launch_with_deepspeed(monkeypatch, stage=2):
    for name, value in launched_with_deepspeed(stage).items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(FOLDER)


def test_without_a_word_of_accelerate_s_nothing_is_sharded(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert not sharding_asked()
    check_launch(experiment("lora"))


@pytest.mark.parametrize("spread", ["FSDP", "DeepSpeed"])
@pytest.mark.parametrize("tune", ["lora", "last_layers"])
def test_what_spreads_a_policy_is_for_full_tuning(monkeypatch, tune, spread):
    monkeypatch.setenv(f"ACCELERATE_USE_{spread.upper()}", "true")
    with pytest.raises(UserError, match=rf"with {spread}, .* with model\.tune={tune} little is trained"):
        check_launch(experiment(tune))


def test_fsdp_and_two_stages_of_deepspeed_are_supported(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_launch(experiment())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    for stage in (1, 2):
        launch_with_deepspeed(monkeypatch, stage)
        check_launch(experiment())


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("ZERO_STAGE", "3", r"zero_stage 3: .*launch with FSDP: experiments/paper/launch/fsdp\.yaml"),
        ("ZERO_STAGE", "0", r"zero_stage 0: DeepSpeed serves for stages 1 and 2"),
        ("CONFIG_FILE", "ds.json", r"deepspeed_config_file is not read: say zero_stage"),
        ("OFFLOAD_OPTIMIZER_DEVICE", "cpu", r"offload_optimizer_device: cpu is not supported; leave it out"),
    ],
)
def test_of_deepspeed_the_rest_is_refused_with_the_way_out(monkeypatch, setting, value, message):
    launch_with_deepspeed(monkeypatch)
    monkeypatch.setenv(f"ACCELERATE_DEEPSPEED_{setting}", value)
    with pytest.raises(UserError, match=message):
        check_launch(experiment())


def test_deepspeed_that_is_not_installed_is_asked_for(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr("harness.training.sharding.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed; .* pip install --no-build-isolation deepspeed"):
        check_launch(experiment())
