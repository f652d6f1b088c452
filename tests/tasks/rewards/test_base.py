"""Programmatic rewards: by a registered name, or as module:function."""

import pytest

from harness.core.errors import UserError
from harness.tasks.rewards.base import find_reward, register_reward


@pytest.fixture
def brevity():
    @register_reward("brevity", version=lambda: "words-1")
    def brevity(prompt: str, response: str) -> float:
        return -len(response.split())

    return brevity


def test_a_registered_reward_is_found_by_its_name(brevity):
    reward = find_reward("brevity")
    assert reward("anything", "three words here") == -3.0
    assert isinstance(reward("", "a"), float)
    assert (reward.name, reward.version()) == ("brevity", "words-1")


def test_a_function_of_any_module_is_a_reward_and_its_code_is_its_version(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "own_reward_module.py"
    file.write_text("def shout(prompt, response):\n    return response.count('!')\n")
    first = find_reward("own_reward_module:shout")
    assert first("", "a!b!") == 2.0
    version = first.version()
    file.write_text("# a comment\ndef shout(prompt, response):\n    return response.count('!')\n")
    assert first.version() == version
    file.write_text("def shout(prompt, response):\n    return -response.count('!')\n")
    assert first.version() != version


def test_the_modules_that_a_reward_imports_are_part_of_its_version(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "rewards_of_mine"
    package.mkdir()
    (package / "gold.py").write_text("from .sign import SIGN\n\ndef reward(p, r):\n    return SIGN * len(r)\n")
    (package / "sign.py").write_text("SIGN = 1\n")
    reward = find_reward("rewards_of_mine.gold:reward")
    before = reward.version()
    (package / "sign.py").write_text("SIGN = -1\n")
    assert reward.version() != before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("brevityy", "did you mean 'brevity'"),
        ("no_such_module_here:f", "No module named"),
        ("math:no_such_function", "no_such_function"),
        ("math:pi", "is not a function"),
    ],
)
def test_what_is_no_reward_is_said_in_one_line(brevity, name, message):
    with pytest.raises(UserError, match=message) as caught:
        find_reward(name)
    assert "\n" not in str(caught.value)


@pytest.fixture
def classifier(tmp_path):
    """The folder of a tiny text classifier with the labels NEGATIVE and POSITIVE."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(["a good film", "a bad film", "this was"], vocab_size=80, show_progress=False)
    specials = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer, **specials).save_pretrained(tmp_path)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    labels = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}
    config = BertConfig(vocab_size=80, max_position_embeddings=20, initializer_range=1.0, **shape, **labels)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    return tmp_path


def test_a_classifier_s_reward_is_the_probability_of_its_positive_label(classifier):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    reward = find_reward(str(classifier))
    tokenizer, model = (
        kind.from_pretrained(classifier) for kind in (AutoTokenizer, AutoModelForSequenceClassification)
    )
    with torch.no_grad():
        logits = model.eval()(**tokenizer("this was a good film", return_tensors="pt")).logits[0]
    assert reward("this was", "a good film") == pytest.approx(logits.softmax(0)[1].item())
    assert 0 < reward("this was", "a good film " * 50) < 1  # longer than the classifier reads
    assert reward.version() == find_reward(str(classifier)).version()


def test_a_classifier_without_a_positive_label_is_the_user_s_to_mend(classifier):
    config = classifier / "config.json"
    config.write_text(config.read_text().replace("POSITIVE", "LABEL_1"))
    with pytest.raises(UserError, match=r"labels \(NEGATIVE, LABEL_1\) none is positive"):
        find_reward(str(classifier))
