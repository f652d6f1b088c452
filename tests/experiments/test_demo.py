"""The packaged models, and the demo's own experiment on a smaller budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from transformers import PreTrainedModel

from harness.backbones.language_model.policy import load_policy, load_tokenizer
from harness.backbones.language_model.sampling import Drawing, sample
from harness.core.assets import model_folder, weights_hash
from harness.core.config import ModelConfig, SampleConfig
from harness.core.encoder import Encoder
from harness.core.prompt import Message
from harness.core.render import Renderer
from harness.core.store import Store, read_json
from tests.conftest import REPOSITORY
from tests.tiny_experiment import run

pytestmark = pytest.mark.slow
DEMO = REPOSITORY / "experiments" / "rpo_vs_dpo.yaml"


def test_smollm2_is_converted_once_and_answers_a_question():
    folder = model_folder("smollm2-135m-instruct")
    assert (folder / "model.safetensors").is_file()
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert model_folder("smollm2-135m-instruct") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    policy = load_policy(folder, ModelConfig())
    policy.verify()
    renderer = Renderer(load_tokenizer(folder, ModelConfig()))
    prompt = renderer.prompt((Message("user", "What is the capital of France?"),), limit=100, keep="end")
    decoding = SampleConfig(temperature=0.0, max_new_tokens=24)
    drawing = Drawing(decoding, 0, renderer.stop_tokens, renderer.pad_token)
    (answer,) = sample(policy.model, [prompt.ids], ["q"], drawing)
    assert "Paris" in renderer.decode(answer.ids)


def test_minilm_gives_unit_vectors_that_know_what_is_alike(tmp_path):
    encoder = Encoder("all-minilm-l6-v2", Store(tmp_path))
    texts = ["How do I bake bread?", "What is a good recipe for a loaf?", "The car needs new brakes."]
    vectors = encoder.embed(texts)
    assert vectors.shape == (3, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    similar = vectors @ vectors.T
    assert similar[0, 1] > 0.5 > similar[0, 2]
    stored = encoder.stored(texts)
    np.testing.assert_array_equal(stored, Encoder("all-minilm-l6-v2", Store(tmp_path)).stored(texts))


def test_of_a_text_longer_than_the_encoder_reads_the_end_counts(tmp_path):
    """Two dialogues of 1,000 word pieces that differ only before the last 500 are one text to the encoder."""
    encoder = Encoder("all-minilm-l6-v2", Store(tmp_path))
    ending = "Which mushrooms are safe to eat? " * 70
    first, second, other = encoder.embed(
        ["I like trains very much. " * 100 + ending, "My cat sleeps. " * 100 + ending, ending + "I like trains. " * 100]
    )
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert first @ other < 0.9


def test_the_content_hash_of_a_model_is_that_of_its_files(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = weights_hash(tmp_path)
    assert weights_hash(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"others")
    assert weights_hash(tmp_path) != before


def test_the_demo_s_experiment_runs_on_the_packaged_models_and_is_skipped_the_second_time(
    tmp_path, monkeypatch, capsys
):
    """The second run builds no artifact and loads no model's weights."""
    small = [
        f"results={tmp_path}",
        "figures=false",
        *(f"tasks.{task}.{key}={n}" for task in ("hh", "tldr") for key, n in (("train_pairs", 4), ("dev_pairs", 1))),
        *(f"tasks.{task}.test_prompts=2" for task in ("hh", "tldr", "alpaca_eval")),
        "tasks.hh.judge_pairs=40",
        "tasks.tldr.judge_pairs=40",
        "sample.max_new_tokens=4",
    ]
    assert run(DEMO, *small) == 0
    frame = pd.read_csv(tmp_path / "rpo_vs_dpo" / "leaderboard.csv")
    assert len(frame) == 3 * 7 and (frame.status == "ok").all()
    hh = frame.query("task == 'hh'").set_index("loss")
    assert set(hh.index) == {"sft", "dpo", "ipo", "rpo_paired", "rpo_unpaired", "rpo_uniform", "rpo_diagonal"}
    assert hh.kl["sft"] == 0 and (hh.kl.drop("sft") != 0).all()
    cells = len(read_json(tmp_path / "rpo_vs_dpo" / "plan.json")["cells"])
    built = times_of_artifacts(tmp_path)
    assert len(built) > cells
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(without_weights))
    capsys.readouterr()
    assert run(DEMO, *small) == 0
    assert f"{cells} cells ({cells} already trained)" in capsys.readouterr().out
    assert times_of_artifacts(tmp_path) == built


def times_of_artifacts(folder: Path) -> dict[Path, int]:
    """Return every artifact of a results folder with the time at which it was built."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("artifact.json")}


READ = PreTrainedModel.from_pretrained.__func__


def without_weights(cls, *arguments, **options):
    assert options.get("device_map") == {"": "meta"}, "the weights of a model are loaded"
    return READ(cls, *arguments, **options)
