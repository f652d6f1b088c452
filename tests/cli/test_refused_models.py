"""Models that cannot be trained as asked are refused in one clear line, before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, GraniteConfig, GraniteForCausalLM

from tests.changed_model import changed
from tests.cli.conftest import task
from tests.conftest import build_tiny_model


def test_a_loss_of_two_references_with_only_one(refuses):
    assert "loss 'mrpo' needs a second reference; name a model in 'second_reference'" in refuses(losses={"mrpo": {}})


def test_a_second_reference_that_reads_other_tokens(refuses, tiny_model, tmp_path, capsys):
    other = build_tiny_model(tmp_path / "other", vocabulary=400)
    capsys.readouterr()
    message = refuses(losses={"mrpo": {}}, second_reference=str(other))
    assert f"second_reference {other}: its tokenizer is not that of {tiny_model}" in message


def test_lengths_beyond_the_context(refuses):
    message = refuses(tasks=task(max_prompt_tokens=500, max_completion_tokens=100))
    assert "max_prompt_tokens=500 and max_completion_tokens=100 exceed the 512 tokens of context" in message


def test_a_model_that_is_not_there(refuses, tmp_path):
    assert "neither a packaged model, a folder, nor a hub id" in refuses(model={"name": "smollm2"})
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refuses(model={"name": str(tmp_path / "empty")})


def test_pickled_weights_are_not_loaded(refuses, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "has no .safetensors weights" in refuses(model={"name": str(folder)})


def test_a_hub_that_cannot_be_reached(refuses):
    assert "cannot be had from the hub" in refuses(model={"name": "nobody/no-such-model"})


def test_too_many_trained_layers(refuses, tiny_model):
    message = refuses(model={"name": str(tiny_model), "tune": "last_layers", "last_layers": 3})
    assert "model.last_layers=3, but the model has 3 layers" in message


def test_more_activations_of_frozen_layers_than_may_be_stored(refuses, tiny_model):
    model = {"name": str(tiny_model), "tune": "last_layers", "last_layers": 1, "trunk_cap_gb": 1e-6}
    message = refuses(model=model)
    assert "of the frozen layers' activations, and model.trunk_cap_gb is 1e-06; raise it, lower train_pairs" in message


def test_lora_targets_that_the_model_lacks(refuses, tiny_model):
    model = {"name": str(tiny_model), "tune": "lora", "lora": {"targets": "no_such_layer"}}
    assert "model.lora:" in refuses(model=model)


def another(folder: Path, to: Path, tensors=dict, **settings) -> dict:
    """Return the section `model` that names a copy of a model with other tensors and settings."""
    return {"name": str(changed(folder, to, tensors, **settings))}


def test_a_model_that_lacks_weights(refuses, tiny_model, tmp_path):
    """As torch.compile leaves them: transformers would fill in random ones."""
    model = another(
        tiny_model, tmp_path / "compiled", lambda tensors: {f"_orig_mod.{name}": t for name, t in tensors.items()}
    )
    message = refuses(model=model)
    assert "compiled lacks the weights lm_head.weight, model.embed_tokens.weight," in message
    assert "(it has _orig_mod.model.embed_tokens.weight instead)" in message
    mrpo = {"losses": {"mrpo": {}}, "second_reference": model["name"]}
    assert "compiled lacks the weights" in refuses(model={"name": str(tiny_model)}, **mrpo)


def test_a_model_with_a_weight_that_is_no_number(refuses, tiny_model, tmp_path):
    def damage(tensors):
        tensors["model.norm.weight"][3] = float("nan")
        return tensors

    model = another(tiny_model, tmp_path / "nan", damage)
    assert "the weight model.norm.weight has NaN or infinite values" in refuses(model=model)


def test_another_vocabulary_in_the_configuration(refuses, tiny_model, tmp_path):
    model = another(tiny_model, tmp_path / "size", vocab_size=608)
    assert "has model.embed_tokens.weight in the shape (600, 32); by its config.json it is (608, 32)" in refuses(
        model=model
    )


@pytest.mark.parametrize("token", ["pad_token", "of the template"])
def test_a_token_that_the_model_has_no_embedding_for(refuses, tiny_model, tmp_path, token):
    model = another(tiny_model, tmp_path / "more")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "more")
    if token == "pad_token":
        tokenizer.add_special_tokens({"pad_token": "<new>"})
    else:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<new>"]})
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<new>")
    tokenizer.save_pretrained(tmp_path / "more")
    assert "its tokenizer has the id 600 for '<new>', and its embedding only 600 rows" in refuses(model=model)


def test_last_layers_of_a_model_whose_layers_have_other_names(refuses, tiny_model, tmp_path, capsys):
    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=600, n_embd=32, n_layer=3, n_head=4)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    capsys.readouterr()
    message = refuses(model={"name": str(folder), "tune": "last_layers", "last_layers": 1})
    assert "tune: last_layers does not know the layers of GPT2Model; use lora or full" in message


def test_a_second_reference_whose_logits_are_scaled(refuses, tiny_model, tmp_path, capsys):
    """Its log-probs would be wrong, like those of a model to be trained."""
    folder, sizes = tmp_path / "granite", {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = GraniteConfig(vocab_size=600, num_hidden_layers=1, num_key_value_heads=4, logits_scaling=8.0, **sizes)
    GraniteForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    capsys.readouterr()
    message = refuses(losses={"mrpo": {}}, second_reference=str(folder))
    assert "model granite: log-probs computed from its last hidden states" in message


def test_adapters_that_would_not_be_trained(refuses, tiny_model):
    model = {"name": str(tiny_model), "tune": "lora", "lora": {"targets": "q_proj, lm_head"}}
    assert "model.lora.targets: an adapter of lm_head would not be trained" in refuses(model=model)


def test_damaged_weights(refuses, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"not safetensors")
    assert "model in" in refuses(model={"name": str(tmp_path / "damaged")})


def test_a_revision_of_what_is_not_on_the_hub(refuses, tiny_model):
    assert "model.revision=main is for hub ids" in refuses(model={"name": str(tiny_model), "revision": "main"})
