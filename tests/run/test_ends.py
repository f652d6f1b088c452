"""The ends that a model's generation_config.json names: samples stop there, and nothing is trained again for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness.core.record_files import read_records
from harness.core.records import SAMPLE, TRAIN, Sample, stage_folder
from harness.experiment.plan import Plan
from harness.run.cell import run_cell
from harness.run.worker import Worker
from tests.planned import plan_of
from tests.tiny_experiment import run, write_experiment


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, tiny_model, tiny_encoder) -> Path:
    folder = tmp_path_factory.mktemp("ends")
    model = shutil.copytree(tiny_model, folder / "model")
    tasks = {"hh": {"train_pairs": 12, "dev_pairs": 4, "test_prompts": 6, "max_prompt_tokens": 96}}
    return write_experiment(folder, model, tiny_encoder, tasks=tasks, losses={"dpo": {}}, sample={"max_new_tokens": 16})


def sampled(experiment: Path, **generation: object) -> tuple[Plan, list[Sample], float]:
    """Run a cell with this generation_config.json; return the plan, the samples, and when the policy was trained."""
    (experiment.parent / "model" / "generation_config.json").write_text(json.dumps(generation))
    plan = plan_of(experiment)
    cell = plan.cells[1]
    assert run_cell(plan, cell.key, Worker(plan)) == []
    trained = plan.folder(cell) / TRAIN / "tensors.safetensors"
    return plan, read_records(Sample, plan.folder(cell) / stage_folder(SAMPLE, "hh")), trained.stat().st_mtime_ns


def test_samples_end_there_and_nothing_is_trained_again(experiment):
    eos = plan_of(experiment).renderer.tokenizer.eos_token_id
    plan, before, trained = sampled(experiment, eos_token_id=eos, temperature=0.6)
    assert plan.ends == (), "it names what the tokenizer names already"
    longest = max(before, key=lambda sample: sample.tokens)
    extra = longest.ids[longest.tokens // 2]
    again, after, trained_again = sampled(experiment, eos_token_id=[*plan.renderer.stop_tokens, extra])
    assert again.ends == (extra,)
    assert again.cells == plan.cells and trained_again == trained
    for one, other in zip(before, after, strict=True):
        end = one.ids.index(extra) + 1 if extra in one.ids else one.tokens
        assert other.ids == one.ids[:end]
        assert other.finished == (one.finished or extra in one.ids)
    assert after != before


def test_a_file_that_cannot_be_read_is_one_line_before_anything_is_trained(experiment, tmp_path, capsys):
    (experiment.parent / "model" / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    assert run(experiment, f"results={tmp_path}") == 2
    assert "generation_config.json: eos_token_id must be a token id" in capsys.readouterr().err
    assert not list(tmp_path.rglob("artifact.json"))
