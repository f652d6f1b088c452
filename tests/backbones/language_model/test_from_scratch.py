"""A language model from nothing: tokenizer, windows, training, and the stage that keeps it."""

import math

import pytest
import torch

from harness.backbones.language_model.from_scratch import cut_into_windows, pretrained, train_tokenizer
from harness.backbones.language_model.policy import load_policy, load_tokenizer
from harness.cli.main import main
from harness.core.assets import weights_hash
from harness.core.config import FromScratchConfig, ModelConfig, PretrainConfig
from harness.core.errors import UserError
from harness.core.prompt import Message
from harness.core.render import Renderer
from harness.core.store import Store, read_json, read_jsonl
from harness.tasks.reviews import load_reviews
from tests.tasks.reviews_file import write_reviews

SHAPE = {"vocabulary": 300, "hidden": 16, "layers": 2, "heads": 2, "feed_forward": 32, "context": 48}


@pytest.fixture(scope="module")
def reviews(tmp_path_factory) -> str:
    return str(write_reviews(tmp_path_factory.mktemp("reviews") / "reviews.jsonl"))


@pytest.fixture(scope="module")
def tokenizer(reviews):
    return train_tokenizer([review.text for review in load_reviews(reviews)["policy"]], 300)


def config(reviews: str, **changes) -> FromScratchConfig:
    pretrain = PretrainConfig(warmup_steps=5, epochs=2, **changes)
    return FromScratchConfig(data=reviews, pretrain=pretrain, **SHAPE)


@pytest.fixture(scope="module")
def made(reviews, tmp_path_factory):
    """The artifact of a tiny model, and its store."""
    store = Store(tmp_path_factory.mktemp("store"))
    return pretrained(config(reviews), store), store


def test_texts_come_back_and_a_completion_goes_on_with_its_prompt(tokenizer):
    text = "The film's ending wasn't great, was it?  Émile says: no."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == f" {text}"
    halves = ["The film's ending", "wasn't great, was it?  Émile says: no."]
    assert [i for half in halves for i in tokenizer(half, add_special_tokens=False)["input_ids"]] == ids


def test_a_prompt_is_the_beginning_of_a_text_and_nothing_else(tokenizer):
    renderer = Renderer(tokenizer)
    rendered = renderer.prompt((Message("user", "The film was"),), limit=50, keep="end")
    assert rendered.ids == (tokenizer.bos_token_id, *tokenizer("The film was", add_special_tokens=False)["input_ids"])
    assert renderer.stop_tokens == [tokenizer.eos_token_id]


def test_windows_predict_every_token_once_and_each_text_s_end(tokenizer):
    texts = ["the film was dull", "the hero was superb and the music was a joy"]
    end = tokenizer.eos_token_id
    stream = [i for text in texts for i in (end, *tokenizer(text, add_special_tokens=False)["input_ids"])] + [end]
    windows = cut_into_windows(tokenizer, texts, 8)
    assert [token for window in windows for token in window.completion] == stream[1:]
    assert all(len(window.prompt) == 1 and len(window) <= 8 for window in windows)
    firsts = [windows[0].prompt[0], *(window.completion[-1] for window in windows[:-1])]
    assert [window.prompt[0] for window in windows] == firsts


def test_training_lowers_the_loss_and_what_is_measured_is_the_stored_model(made, reviews):
    artifact, _ = made
    record = read_json(artifact.path / "pretrain.json")
    losses = [row["loss"] for row in read_jsonl(artifact.path / "metrics.jsonl")]
    assert losses[0] == pytest.approx(math.log(300), abs=0.1) and record["held_out"]["loss"] < losses[0] - 1
    tokenizer = load_tokenizer(artifact.path / "model", ModelConfig())
    policy = load_policy(artifact.path / "model", ModelConfig())
    held_out = [review.text for review in load_reviews(reviews)["dev"]]
    total, count = 0.0, 0
    for window in cut_into_windows(tokenizer, held_out, 48):
        ids = torch.tensor([window.prompt + window.completion])
        with torch.no_grad():
            logits = policy.model(ids).logits[0, :-1].double()
        total -= logits.log_softmax(1).gather(1, ids[0, 1:, None]).sum().item()
        count += len(window.completion)
    assert record["held_out"]["loss"] == pytest.approx(total / count, abs=1e-4)
    assert record["held_out"]["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-3)
    assert record["parameters"] == sum(p.numel() for p in policy.model.parameters())


def test_it_is_made_once_for_its_settings_and_texts_and_the_same_twice(made, reviews, tmp_path):
    artifact, store = made
    assert (
        pretrained(config(reviews, micro_batch_tokens=64), store, lambda *n: pytest.fail("trained again")) == artifact
    )
    again = pretrained(config(reviews), Store(tmp_path))
    assert weights_hash(again.path / "model") == weights_hash(artifact.path / "model")
    other = pretrained(config(reviews, seed=1), store)
    assert other.path != artifact.path
    assert weights_hash(other.path / "model") != weights_hash(artifact.path / "model")


def test_too_few_reviews_are_the_user_s_to_mend(tmp_path):
    path = write_reviews(tmp_path / "few.jsonl", 2)
    with pytest.raises(UserError, match=r"model\.from_scratch: .*few\.jsonl has too few reviews"):
        pretrained(config(str(path)), Store(tmp_path))


def test_the_command_trains_and_exports_a_model_with_its_record(reviews, tmp_path, capsys):
    shape = "\n".join(f"    {key}: {value}" for key, value in SHAPE.items())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"results: {tmp_path}/results\n"
        f"model:\n  from_scratch:\n    data: {reviews}\n{shape}\n    pretrain: {{warmup_steps: 5}}\n"
    )
    assert main(["pretrain", str(recipe), "model.from_scratch.pretrain.seed=3", "--into", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "README.md").read_text()
    record = read_json(next((tmp_path / "results").rglob("pretrain.json")))
    assert (
        f"perplexity {record['held_out']['perplexity']:.1f}" in page and f"{record['parameters']:,} parameters" in page
    )
    assert f"python -m harness pretrain {recipe} model.from_scratch.pretrain.seed=3 --into {tmp_path}/out" in page
    assert load_policy(tmp_path / "out", ModelConfig()).model.config.num_hidden_layers == 2
    assert main(["pretrain", str(recipe), "model.from_scratch=null"]) == 2
    assert "model.from_scratch is not there" in capsys.readouterr().err
    assert main(["pretrain", str(recipe), "model.from_scratch.heads=3"]) == 2
    assert "must be an even number of dimensions for each of the 3 heads" in capsys.readouterr().err
