"""A tiny experiment that runs in seconds, for the tests of what a user sees."""

from __future__ import annotations

from pathlib import Path

import yaml

from harness.cli.main import main

LOSSES = {
    "dpo": {"beta": 0.1},
    "ipo": {"tau": 0.1},
    "rpo_paired": {"beta": 0.1, "temperature": 0.5},
    "rpo_unpaired": {},
}


# A judge that costs nothing, for experiments whose test asks something else, and one that is fitted.
JUDGE = {"kind": "gold", "reward": "tests.tiny_experiment:length"}
FITTED = {"kind": "preference_model"}


def length(prompt: str, response: str) -> float:
    """A reward: the longer the better."""
    return len(response)


def write_experiment(folder: Path, model_folder: Path, encoder_folder: Path, name: str = "tiny", **changes) -> Path:
    """Write an experiment file; `changes` replace top-level keys (None removes one). Its runs draw no figures."""
    optim = {"lr": 1e-3, "optimizer": "adamw", "batch_size": 8, "micro_batch_tokens": 1500}
    experiment = {
        "results": str(folder / "results"),
        "figures": False,
        "seeds": [0],
        "model": {"name": str(model_folder), "tune": "last_layers", "last_layers": 1},
        "encoder": str(encoder_folder),
        "tasks": {
            "hh": {
                "train_pairs": 24,
                "dev_pairs": 8,
                "test_prompts": 6,
                "judge_pairs": 60,
                "max_prompt_tokens": 96,
                "max_completion_tokens": 32,
            },
            "alpaca_eval": {"evaluates": ["hh"], "test_prompts": 4, "max_prompt_tokens": 96},
        },
        "losses": LOSSES,
        "sft": optim,
        "train": {**optim, "eval_every": 2},
        "sample": {"max_new_tokens": 8},
        **({} if "judges" in changes else {"judge": JUDGE}),
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in experiment.items() if v is not None}, sort_keys=False))
    return path


def run(path: Path, *overrides: str) -> int:
    """Run an experiment as the command line does; return the exit status."""
    return main(["run", str(path), *overrides])
