"""What identifies a model folder: the files that make its weights, its configuration and its tokenizer."""

import shutil

import pytest

from harness.core.assets import weights_hash

PART_OF_IT = [
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "qwen.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tools.jinja",
    "modeling_own.py",
    "parts/layers.py",
]
NOT_PART_OF_IT = [
    "generation_config.json",
    "README.md",
    "LICENSE.txt",
    ".gitattributes",
    "artifact.json",
    "trainer_state.json",
    "all_results.json",
    "training_args.bin",
    "checkpoint-100/model.safetensors",
    "checkpoint-100/config.json",
    ".cache/huggingface/download/config.json.metadata",
]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize("name", PART_OF_IT)
def test_weights_configuration_tokenizer_and_code_are_part_of_it(folder, name):
    before = weights_hash(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("other")
    assert weights_hash(folder) != before


@pytest.mark.parametrize("name", NOT_PART_OF_IT)
def test_what_changes_no_policy_is_not(folder, name):
    before = weights_hash(folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("other")
    assert weights_hash(folder) == before


def test_the_place_of_a_model_is_not(folder, tmp_path):
    assert weights_hash(shutil.copytree(folder, tmp_path / "elsewhere")) == weights_hash(folder)
