"""Every experiment file that ships loads, and expands into the cells that it should."""

import re

import pytest

from harness.core.errors import UserError
from harness.experiment.file import load_experiment
from harness.experiment.plugins import load_plugins
from harness.experiment.resolve import resolve
from harness.training.sharding import check_launch
from losses import list_losses
from tests.conftest import REPOSITORY
from tests.deepspeed import FOLDER, launched_with_deepspeed

EXPERIMENTS = REPOSITORY / "experiments"
MODELS = sorted((EXPERIMENTS / "assets").glob("*.yaml"))  # they make a model, and compare nothing
FILES = sorted(path for path in EXPERIMENTS.rglob("*.yaml") if path.parent.name not in ("launch", "assets"))
BUILT_IN = set(list_losses())  # while tests are collected, nothing else is registered


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(EXPERIMENTS)))
def test_a_shipped_experiment_loads_and_expands(path):
    experiment = load_experiment(path)
    load_plugins([str(EXPERIMENTS.parent / plugin) for plugin in experiment.plugins])
    resolved = resolve(experiment)
    assert {loss for loss, _ in resolved.points} == set(experiment.losses)
    assert set(resolved.evaluated_on) == {name for name, task in resolved.tasks.items() if task.trains}


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.name)
def test_a_shipped_model_can_be_made_again(path):
    scratch = load_experiment(path, runs=False).model.from_scratch
    assert scratch is not None and scratch.texts is None
    with pytest.raises(UserError, match="'losses' is empty"):
        load_experiment(path)


def test_the_demo_compares_what_the_readme_says():
    resolved = resolve(load_experiment(EXPERIMENTS / "rpo_vs_dpo.yaml"))
    assert list(resolved.losses) == ["dpo", "ipo", "rpo_paired", "rpo_unpaired", "rpo_uniform", "rpo_diagonal"]
    assert resolved.evaluated_on == {"hh": ("hh", "alpaca_eval"), "tldr": ("tldr",)}


def test_the_zoo_holds_every_loss():
    assert {name for name in load_experiment(EXPERIMENTS / "zoo.yaml").losses if "+" not in name} == BUILT_IN


@pytest.mark.parametrize(
    ("file", "environment"),
    [
        ("fsdp.yaml", {"ACCELERATE_USE_FSDP": "true"}),
        ("deepspeed.yaml", {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}),
    ],
)
def test_accelerate_reads_the_launch_files_of_the_paper(file, environment, monkeypatch):
    """The commands of experiments/paper/README.md, up to where the processes would start and would be checked."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    text = (EXPERIMENTS / "paper" / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(rf"^    accelerate launch (.*{file}.*)$", text, flags=re.MULTILINE)
    words = [str(EXPERIMENTS.parent / word) if word.endswith(file) else word for word in command.split()]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    arguments.deepspeed_fields_from_accelerate_config = ""
    asked = prepare_deepspeed_cmd_env(arguments)[1] if arguments.use_deepspeed else prepare_multi_gpu_env(arguments)
    assert environment.items() <= asked.items()
    assert arguments.num_processes == 8 and arguments.mixed_precision == "no"
    assert (arguments.training_script, *arguments.training_script_args) == (
        "harness",
        "run",
        "experiments/paper/hh.yaml",
    )
    if arguments.use_deepspeed:
        launched_with_deepspeed()
        monkeypatch.syspath_prepend(FOLDER)
    for name, value in asked.items():
        if name.startswith("ACCELERATE_"):
            monkeypatch.setenv(name, value)
    check_launch(load_experiment(EXPERIMENTS / "paper" / "hh.yaml"))


@pytest.mark.parametrize("name", ["hh", "tldr"])
def test_the_paper_s_files_hold_the_paper_s_setting(name):
    """RMSprop 5e-7, 150 warm-up steps, one epoch, batch 64, clip 10, 512 tokens of which 256 prompt, 256 prompts."""
    experiment = load_experiment(EXPERIMENTS / "paper" / f"{name}.yaml")
    for optim in (experiment.sft, experiment.train):
        assert (optim.optimizer, optim.lr, optim.warmup_steps, optim.schedule) == ("rmsprop", 5e-7, 150, "constant")
        assert (optim.epochs, optim.batch_size, optim.clip) == (1, 64, 10.0)
    task = experiment.tasks[name]
    assert task.max_prompt_tokens == 256 and task.max_prompt_tokens + task.max_completion_tokens == 512
    assert task.test_prompts == 256 and experiment.sample.top_p == 0.95
    assert experiment.judge["kind"] == "openai" and len(experiment.seeds) > 1
