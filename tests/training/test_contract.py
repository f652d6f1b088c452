"""The contract between training and a backbone is complete: a table of bigrams trains like the language model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from harness.conformance.bigram import SUPPLIERS, VOCABULARY, Bigram, BigramSplit, Text, Texts
from harness.core.config import TrainConfig
from harness.core.prompt import Message
from harness.training.base import Job
from harness.training.batch import Example
from harness.training.checkpoint import Checkpoints
from harness.training.objective import StartError
from harness.training.preference import kept_folder, train_preference
from losses import get_loss
from tests.conftest import REPOSITORY

LOSSES = ["dpo", "rpo_paired", "kto", "bco", "hpo", "plackett_luce", "dpo+wpo"]
WIDE = 10**6


class Killed(Exception):
    pass


def bigram(seed: int) -> Bigram:
    torch.manual_seed(seed)
    return Bigram()


def split(start: Bigram, seed: int, train: list[Example] | None = None, budget: int = WIDE) -> BigramSplit:
    """Twenty pairs whose chosen response has even tokens and whose rejected one has odd ones."""
    rng = np.random.default_rng(seed)
    texts, examples = [], []
    for i in range(20):
        prompt = tuple(rng.integers(1, VOCABULARY, 3).tolist())
        for odd in (0, 1):
            texts.append(Text(prompt, tuple((2 * rng.integers(0, VOCABULARY // 2, rng.integers(2, 9)) + odd).tolist())))
        examples.append(Example((Message("user", str(i)),), 2 * i, 2 * i + 1, (2.0, 1.0)))
    source = Texts(texts, budget)
    return BigramSplit(
        examples,
        True,
        train or examples,
        source,
        *source.score([start]),
        lambda other: other.score([start])[0],
        lambda examples: np.random.default_rng(2).normal(size=(len(examples), 4)).astype(np.float32),
        SUPPLIERS,
        bigram(9),
    )


def train(folder: Path, loss: str, *, budget: int = WIDE, stop: int | None = None, policy: Bigram | None = None):
    """Train for three epochs of five steps; return the table and the rows of `metrics.jsonl`."""
    start = bigram(0)
    policy = policy or bigram(0)
    splits = {"train": split(start, 0, budget=budget)}
    splits["dev"] = split(start, 1, splits["train"].examples, budget)

    def progress(done: int, total: int) -> None:
        assert total == 15
        if done == stop:
            raise Killed

    result = folder / "result"
    result.mkdir(parents=True, exist_ok=True)
    job = Job(Accelerator(cpu=True), result, progress, Checkpoints(folder / "partial", {"loss": loss}, "2"))
    config = TrainConfig(lr=0.05, optimizer="adamw", epochs=3, batch_size=4, eval_every=4, keep_at=[0.5])
    chosen = get_loss(loss)
    train_preference(policy, chosen, chosen.settings(), splits, config, 0, job)
    rows = [json.loads(line) for line in (result / "metrics.jsonl").read_text().splitlines()]
    return load_file(result / "tensors.safetensors")["table"], rows


def without_seconds(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.parametrize("loss", LOSSES)
def test_it_trains_and_learns(tmp_path, loss):
    table, rows = train(tmp_path, loss)
    dev = [row for row in rows if row["split"] == "dev"]
    assert [row["step"] for row in dev] == [0, 4, 8, 12, 15]
    assert dev[0]["chosen_logratio"] == dev[0]["kl"] == 0
    assert dev[-1]["loss"] < dev[0]["loss"] and dev[-1]["accuracy"] > 0.8
    assert not torch.equal(table, bigram(0).table)
    assert (kept_folder(tmp_path / "result", 0.5) / "tensors.safetensors").exists()
    summary = json.loads((tmp_path / "result" / "summary.json").read_text())
    assert (summary["steps"], summary["examples"]) == (15, 3 * 40)
    assert summary["tokens"] == sum(row["tokens"] for row in rows if row["split"] == "train")


@pytest.mark.parametrize("loss", LOSSES)
def test_it_does_not_matter_how_a_batch_is_cut(tmp_path, loss):
    whole, expected = train(tmp_path / "whole", loss)
    cut, rows = train(tmp_path / "cut", loss, budget=25)
    torch.testing.assert_close(cut, whole, atol=1e-4, rtol=1e-4)
    assert rows[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("stop", [3, 9])
def test_killed_and_resumed_is_never_interrupted(tmp_path, loss, stop):
    whole, expected = train(tmp_path / "whole", loss, budget=60)
    with pytest.raises(Killed):
        train(tmp_path / "killed", loss, budget=60, stop=stop)
    resumed, rows = train(tmp_path / "killed", loss, budget=60)
    assert torch.equal(resumed, whole)
    assert without_seconds(rows) == without_seconds(expected)


def test_a_policy_that_is_not_its_reference_fails_at_step_0(tmp_path):
    with pytest.raises(StartError, match="the policy is not its reference"):
        train(tmp_path, "dpo", policy=bigram(1))


def test_it_stands_without_the_language_model():
    code = "import sys, harness.conformance.bigram, harness.training.preference\n"
    code += "assert not [name for name in sys.modules if name.startswith(('harness.backbones', 'transformers'))]"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
