"""The vLLM engine, tested without vLLM and a GPU: the parameters of a request, and the settings that are refused."""

import importlib.util
from dataclasses import replace

import pytest

from harness.backbones.language_model import vllm as vllm_engine
from harness.backbones.language_model.sampling import Drawing
from harness.backbones.language_model.vllm import check_engine, request_parameters
from harness.core.config import ExperimentConfig, ModelConfig, SampleConfig
from harness.core.errors import UserError
from tests.tiny_experiment import run, write_experiment

installed = importlib.util.find_spec("vllm") is not None


def experiment(tune="full", engine="vllm"):
    return ExperimentConfig(model=ModelConfig(tune=tune), sample=SampleConfig(engine=engine))


def test_vllm_is_asked_for_the_experiment_s_decoding():
    drawing = Drawing(SampleConfig(temperature=0.7, top_p=0.9, max_new_tokens=33), 5, [2, 7], 2)
    asked = request_parameters("question-1", drawing)
    seed = asked.pop("seed")
    assert asked == {
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 33,
        "stop_token_ids": [2, 7],
        "ignore_eos": True,
        "detokenize": False,
    }
    assert seed == request_parameters("question-1", drawing)["seed"]
    other = request_parameters("question-2", drawing), request_parameters("question-1", replace(drawing, seed=6))
    assert seed not in [asked["seed"] for asked in other], "noise belongs to the seed and the prompt"


def test_a_completion_has_ended_if_its_last_id_is_a_stop_token():
    assert vllm_engine._as_completion([5, 6, 2], [2]).finished
    assert not vllm_engine._as_completion([5, 2, 6], [2]).finished
    assert vllm_engine._as_completion([5, 6, 2], [2]).ids == (5, 6, 2)


@pytest.mark.skipif(installed, reason="vllm is installed")
def test_a_run_without_vllm_is_refused_before_anything_is_done(tmp_path, tiny_model, tiny_encoder, capsys):
    path = write_experiment(tmp_path, tiny_model, tiny_encoder, losses={"dpo": {}})
    assert run(path, "sample.engine=vllm") == 2
    assert "sample.engine=vllm: vllm is not installed; run pip install '.[vllm]'" in capsys.readouterr().err
    assert not (tmp_path / "results" / "tiny").exists()


def test_the_other_engine_asks_for_nothing():
    check_engine(experiment(tune="lora", engine="hf"), processes=8)


@pytest.mark.parametrize(("tune", "processes", "why"), [("lora", 1, "LoRA"), ("full", 2, "in one process, not in 2")])
def test_what_vllm_cannot_do_is_refused(monkeypatch, tune, processes, why):
    spec = importlib.util.find_spec("json")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)  # as if vllm were installed
    with pytest.raises(UserError, match=why):
        check_engine(experiment(tune=tune), processes)
