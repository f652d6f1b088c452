"""Every experiment file that ships loads, and expands into the cells that it should."""

from pathlib import Path

import pytest

from harness.config import load_experiment
from harness.resolve import resolve
from losses import get_loss, list_losses

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
FILES = sorted(EXPERIMENTS.rglob("*.yaml"))
BUILT_IN = set(list_losses())  # while tests are collected, nothing else is registered


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(EXPERIMENTS)))
def test_a_shipped_experiment_loads_and_expands(path):
    experiment = load_experiment(path)
    resolved = resolve(experiment)
    assert {loss for loss, _ in resolved.points} == set(experiment.losses)
    assert set(resolved.evaluated_on) == {name for name, task in resolved.tasks.items() if task.trains}


def test_the_demo_compares_what_the_readme_says():
    resolved = resolve(load_experiment(EXPERIMENTS / "rpo_vs_dpo.yaml"))
    assert list(resolved.losses) == ["dpo", "ipo", "rpo_paired", "rpo_unpaired", "rpo_uniform", "rpo_diagonal"]
    assert resolved.evaluated_on == {"hh": ("hh", "alpaca_eval"), "tldr": ("tldr",)}


def test_the_zoo_holds_every_loss_that_pairs_without_scores_can_train():
    trainable = {name for name in BUILT_IN if "scores" not in get_loss(name).needs}
    assert set(load_experiment(EXPERIMENTS / "zoo.yaml").losses) == trainable


@pytest.mark.parametrize("name", ["hh", "tldr"])
def test_the_paper_s_files_hold_the_paper_s_setting(name):
    """RMSprop 5e-7, 150 warm-up steps, one epoch, batch 64, clipping 10, 512 tokens of which 256 prompt, 256 prompts."""
    experiment = load_experiment(EXPERIMENTS / "paper" / f"{name}.yaml")
    for optim in (experiment.sft, experiment.train):
        assert (optim.optimizer, optim.lr, optim.warmup_steps, optim.schedule) == ("rmsprop", 5e-7, 150, "constant")
        assert (optim.epochs, optim.batch_size, optim.clip) == (1, 64, 10.0)
    task = experiment.tasks[name]
    assert task.max_prompt_tokens == 256 and task.max_prompt_tokens + task.max_completion_tokens == 512
    assert task.test_prompts == 256 and experiment.sample.top_p == 0.95
    assert experiment.judge["kind"] == "openai" and len(experiment.seeds) > 1
