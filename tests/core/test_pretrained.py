"""A folder holds exactly the model that its configuration describes, or it is refused in one line."""

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM

from harness.backbones.language_model.policy import load_policy
from harness.core.config import ModelConfig
from harness.core.encoder import Encoder
from harness.core.errors import UserError
from harness.core.pretrained import check_files, load_model
from harness.core.store import Store
from harness.evaluation.judges.local import LocalModel, LocalOptions
from harness.tasks.rewards.classifier import ClassifierReward
from tests.changed_model import changed


def renamed(prefix):
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def without(part):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def damaged(value, name="model.layers.1.mlp.up_proj.weight"):
    def change(tensors):
        tensors[name][3, 5] = value
        return tensors

    return change


FIRST = r"lacks the weights lm_head\.weight, model\.embed_tokens\.weight, .* 27 more \(it has {}model\.embed_tokens\."
WRONG = {
    "compiled": (renamed("_orig_mod."), {}, FIRST.format(r"_orig_mod\.")),
    "distributed": (renamed("module."), {}, FIRST.format(r"module\.")),
    "a layer gone": (without(".layers.1."), {}, r"lacks the weights model\.layers\.1\.input_layernorm\.weight, "),
    "too few layers": (
        dict,
        {"num_hidden_layers": 4},
        r"lacks the weights model\.layers\.3\.input_layernorm\.weight, ",
    ),
    "too many layers": (dict, {"num_hidden_layers": 2}, r"do not belong to .*: model\.layers\.2\.input_layernorm"),
    "another head": (lambda t: {**t, "v_head.weight": torch.ones(3)}, {}, r"do not belong to .*: v_head\.weight"),
    "an untied head": (dict, {"tie_word_embeddings": False}, r"lacks the weights lm_head\.weight;"),
    "a vocabulary": (dict, {"vocab_size": 608}, r"embed_tokens\.weight in the shape \(600, 32\); by .* \(608, 32\)"),
    "NaN": (damaged(float("nan")), {}, r"the weight model\.layers\.1\.mlp\.up_proj\.weight has NaN or infinite values"),
    "infinity": (damaged(-float("inf")), {}, r"up_proj\.weight has NaN or infinite values"),
    "a broken setting": (dict, {"num_hidden_layers": "many"}, r": .*num_hidden_layers"),
}


def test_masks_that_older_files_hold_are_left_out(tmp_path):
    sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "rotary_dim": 4}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gptj", **sizes)).save_pretrained(tmp_path / "new")
    masks = {f"transformer.h.{i}.attn.{name}": torch.ones(1) for i in range(2) for name in ("bias", "masked_bias")}
    new, old = tmp_path / "new", changed(tmp_path / "new", tmp_path / "old", lambda tensors: tensors | masks)
    one, other = (load_policy(folder, ModelConfig()).model.state_dict() for folder in (new, old))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("what", WRONG)
def test_a_policy_is_what_its_folder_says(tiny_model, tmp_path, what):
    tensors, settings, message = WRONG[what]
    folder = changed(tiny_model, tmp_path / "changed", tensors, **settings)
    with pytest.raises(UserError, match=f"^model in {folder}.*{message}") as caught:
        load_policy(folder, ModelConfig())
    assert "\n" not in str(caught.value)


def test_names_and_shapes_are_checked_without_reading_the_weights(tiny_model, tmp_path):
    model = check_files("AutoModelForCausalLM", tiny_model, "it")
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    with pytest.raises(UserError, match=r"it lacks the weights"):
        check_files("AutoModelForCausalLM", changed(tiny_model, tmp_path / "a", without(".layers.1.")), "it")
    check_files("AutoModelForCausalLM", changed(tiny_model, tmp_path / "b", damaged(float("nan"))), "it")


def test_weights_cut_short_are_refused(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "short")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(UserError, match=r"^it: "):
        check_files("AutoModelForCausalLM", folder, "it")


def test_large_weights_of_both_signs_are_finite(tiny_model, tmp_path):
    """A sum may overflow where no weight does."""
    large = lambda tensors: {name: torch.full_like(tensor, 3e38) for name, tensor in tensors.items()}  # noqa: E731
    load_model("AutoModelForCausalLM", changed(tiny_model, tmp_path / "large", large), "it")


@pytest.mark.parametrize("wrong", ["a layer gone", "too many layers", "too few layers"])
def test_encoders_judges_and_rewards_are_what_their_folders_say(tiny_encoder, tmp_path, wrong):
    edit = {
        "a layer gone": {"tensors": without("layer.0.attention")},
        "too many layers": {
            "tensors": lambda t: {**t, **{k.replace("layer.0", "layer.1"): v.clone() for k, v in t.items()}}
        },
        "too few layers": {"num_hidden_layers": 2},
    }[wrong]
    folder = changed(tiny_encoder, tmp_path / "changed", **edit)
    message = r"encoder\.layer\.\d\.attention"
    with pytest.raises(UserError, match=f"^encoder in {folder} .*{message}"):
        Encoder(str(folder), Store(tmp_path))
    with pytest.raises(UserError, match=f"^judge model in {folder} "):
        LocalModel(LocalOptions(str(folder)), "AutoModelForSequenceClassification")
    with pytest.raises(UserError, match=f"^classifier in {folder} "):
        ClassifierReward(str(folder))


def test_an_encoder_may_lie_beside_the_head_of_another_task_and_needs_no_pooler(tiny_encoder, tmp_path):
    """Its hidden states are those of the body alone."""
    torch.manual_seed(0)
    settings = json.loads((tiny_encoder / "config.json").read_text())
    whole = BertForMaskedLM(BertConfig.from_dict(settings))
    whole.save_pretrained(tmp_path / "masked")
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(tmp_path / "masked")
    embedding = Encoder(str(tmp_path / "masked"), Store(tmp_path)).embed(["a text"])
    body = AutoModel.from_pretrained(tmp_path / "masked").eval()
    ids = AutoTokenizer.from_pretrained(tiny_encoder)("a text", return_tensors="pt")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(body(**ids).last_hidden_state.mean(1), dim=1)
    torch.testing.assert_close(torch.from_numpy(embedding), expected, atol=1e-5, rtol=0)


def test_layers_beyond_the_last_are_seen_behind_a_head_too(tiny_model, tmp_path):
    """A causal model's names begin with `model.`, those of its body alone do not."""
    check_files("AutoModel", tiny_model, "it")
    with pytest.raises(UserError, match=r"do not belong to .*layers\.2\."):
        check_files("AutoModel", changed(tiny_model, tmp_path / "changed", num_hidden_layers=2), "it")


def test_ids_that_the_encoder_has_no_embedding_for_are_named(tiny_encoder, tmp_path):
    folder = shutil.copytree(tiny_encoder, tmp_path / "changed")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    size = len(tokenizer)
    tokenizer.add_tokens(["unheard"])
    tokenizer.save_pretrained(folder)
    encoder = Encoder(str(folder), Store(tmp_path))
    encoder.embed(["heard"])
    with pytest.raises(UserError, match=f"has the id {size} for 'unheard', and its embedding only {size} rows"):
        encoder.embed(["this is unheard"])


def test_a_folder_of_a_causal_model_is_loaded_as_transformers_loads_it(tiny_model):
    ours, theirs = (
        load_model("AutoModelForCausalLM", tiny_model, "it"),
        AutoModelForCausalLM.from_pretrained(tiny_model),
    )
    assert not ours.training
    for (name, weight), (other, expected) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other and torch.equal(weight, expected)
