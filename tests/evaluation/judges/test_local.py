"""Local judges, on tiny models made here: reward models, a causal LM's label logits, programmatic rewards."""

import math

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from harness.core.errors import UserError
from harness.core.prompt import Message
from harness.evaluation.base import JUDGES, Comparison
from harness.evaluation.judges import gold, hf_pairwise, reward_model
from harness.evaluation.judges.local import LocalOptions
from harness.evaluation.judges.reward_model import by_scores
from harness.evaluation.judges.template import load_template
from harness.tasks.base import Preference

PROMPT = (Message("user", "How do I boil an egg?"),)
PAIRS = [
    Comparison("a", PROMPT, "In water, for seven minutes, and then into cold water.", "No."),
    Comparison(
        "b", (*PROMPT, Message("assistant", "Why?"), Message("user", "Lunch.")), "Boil it.", "Boil it.<|im_end|>!"
    ),
    Comparison("c", PROMPT, "the same", "the same"),
]


def judged(judge, comparisons=PAIRS):
    return judge.judge(comparisons, lambda done: None)


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory, tiny_model):
    """A decoder with a chat template whose padding token is also its end-of-turn token."""
    folder = tmp_path_factory.mktemp("reward")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, initializer_range=0.5, **sizes
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory, tiny_encoder):
    """An encoder without a chat template, which takes prompt and response as a pair."""
    folder = tmp_path_factory.mktemp("reward-encoder")
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = BertConfig(vocab_size=len(tokenizer), num_labels=1, initializer_range=0.5, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def score_alone(folder, text: str) -> float:
    """Return the score of a single dialogue, without padding and without the harness."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return float(model.score(model.model(input_ids=ids).last_hidden_state[0, -1]))


def test_a_reward_model_s_preference_is_the_logistic_of_the_difference_of_the_scores(reward_folder, make_context):
    """The score is read at the last token. It does not depend on the batch, even if padding has the same id."""
    judge = reward_model.make(LocalOptions(str(reward_folder)), make_context())
    asked = "<|im_start|>user\nHow do I boil an egg?<|im_end|>\n<|im_start|>assistant\n"
    policy, baseline = (
        score_alone(reward_folder, f"{asked}{side}<|im_end|>\n") for side in (PAIRS[0].response, PAIRS[0].baseline)
    )
    judgements = judged(judge)
    assert judgements[0].preference == pytest.approx(1 / (1 + math.exp(baseline - policy)), abs=1e-5)
    assert (judgements[2].status, judgements[2].preference) == ("tie", 0.5)
    assert [j.flipped for j in judgements] == [None] * 3


@pytest.mark.parametrize("folder", ["reward_folder", "encoder_folder"])
def test_scores_do_not_depend_on_the_batch(folder, request, make_context):
    folder = str(request.getfixturevalue(folder))
    many = [Comparison(str(i), PROMPT, "word " * (i % 7 + 1), "other words") for i in range(12)]
    together = judged(reward_model.make(LocalOptions(folder, batch_size=12), make_context("a")), many)
    alone = judged(reward_model.make(LocalOptions(folder, batch_size=1), make_context("b")), many)
    assert [j.preference for j in together] == pytest.approx([j.preference for j in alone], abs=1e-5)
    assert len({round(j.preference, 6) for j in alone}) > 3


def test_swapped_sides_turn_a_reward_model_s_preference_round(encoder_folder, make_context):
    judge = reward_model.make(LocalOptions(str(encoder_folder)), make_context())
    swapped = [Comparison(c.id, c.prompt, c.baseline, c.response) for c in PAIRS]
    total = [a.preference + b.preference for a, b in zip(judged(judge), judged(judge, swapped), strict=True)]
    assert total == pytest.approx([1.0] * 3)


def test_scores_are_kept_by_content(reward_folder, make_context, monkeypatch):
    context = make_context()
    first = judged(reward_model.make(LocalOptions(str(reward_folder)), context))
    again = reward_model.make(LocalOptions(str(reward_folder), batch_size=1), context)
    assert judged(again) == first
    assert "model" not in vars(again.model), "nothing was loaded"


def test_a_prompt_too_long_for_a_reward_model_loses_its_beginning(reward_folder, encoder_folder, make_context):
    long = [Comparison("a", (Message("user", "word " * 500 + end),), "Yes.", "No.") for end in ("one", "two")]
    for folder in (reward_folder, encoder_folder):
        judge = reward_model.make(LocalOptions(str(folder), max_tokens=64), make_context())
        first, second = judged(judge, long)
        assert first.status == "ok" and first.preference != second.preference


def test_a_model_that_is_no_reward_model_is_refused(tiny_model, make_context, tmp_path):
    """Before a run starts: by the names of its weights, or by its configuration."""
    with pytest.raises(UserError, match=r"lacks the weights score\.weight"):
        reward_model.make(LocalOptions(str(tiny_model)), make_context())
    AutoModelForSequenceClassification.from_pretrained(tiny_model).save_pretrained(tmp_path / "two")
    with pytest.raises(UserError, match="has 2 outputs; a reward model has one"):
        reward_model.make(LocalOptions(str(tmp_path / "two")), make_context())
    with pytest.raises(UserError, match="neither a packaged model"):
        reward_model.check_local(LocalOptions("no-such-model"))


def test_scores_that_do_not_compare_fail_and_large_ones_do_not_overflow():
    assert by_scores("a", float("nan"), 0.0).status == "failed"
    assert by_scores("a", float("inf"), 0.0).status == "failed"
    assert by_scores("a", 2000.0, 0.0).preference == 1.0
    assert by_scores("a", 0.0, 2000.0).preference == 0.0
    assert by_scores("a", 1.0, 1.0 + math.log(3)).preference == pytest.approx(0.25)


def test_agreement_of_a_local_judge_is_measured_on_the_held_out_pairs(reward_folder, make_context):
    pairs = [Preference((Message("user", f"question {i}"),), f"answer {i}", f"other {i}") for i in range(20)]
    judge = reward_model.make(LocalOptions(str(reward_folder), agreement_pairs=10), make_context(held_out=pairs))
    scores = [judge.scores([p.prompt], [side]) for p in pairs[:10] for side in (p.chosen, p.rejected)]
    right = sum(a > b for a, b in zip(scores[::2], scores[1::2], strict=True))
    assert (judge.agreement.n, judge.agreement.accuracy) == (10, right / 10)


def test_a_pairwise_judge_reads_the_labels_probabilities_in_both_orders(tiny_model, make_context):
    options = hf_pairwise.PairwiseOptions(str(tiny_model), max_tokens=4096)
    judge = hf_pairwise.make(options, make_context())
    tokenizer, model = (
        AutoTokenizer.from_pretrained(tiny_model),
        AutoModelForCausalLM.from_pretrained(tiny_model).eval(),
    )
    expected = []
    for sides in ((PAIRS[0].response, PAIRS[0].baseline), (PAIRS[0].baseline, PAIRS[0].response)):
        turns = [{"role": "user", "content": judge._request(PAIRS[0], *sides)}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        start = tokenizer(text, add_special_tokens=False)["input_ids"]
        full = [start + tokenizer(f"Preferred: {label}")["input_ids"] for label in (1, 2)]
        parting = next(i for i, (a, b) in enumerate(zip(*full, strict=True)) if a != b)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([full[0][:parting]])).logits[0, -1]
        expected.append(float(logits[[full[0][parting], full[1][parting]]].softmax(0)[0]))
    judgement = judged(judge, PAIRS[:1])[0]
    verdicts = [expected[0] > 0.5, expected[1] < 0.5]
    preference = (expected[0] + 1 - expected[1]) / 2 if verdicts[0] == verdicts[1] else 0.5
    assert judgement.flipped is (verdicts[0] != verdicts[1])
    assert judgement.preference == pytest.approx(preference, abs=1e-5)
    assert judgement.first is not None
    assert judged(judge)[2].detail == "identical responses: not asked"


def test_a_pairwise_judge_says_the_same_twice_and_in_any_batch(tiny_model, make_context):
    first = judged(hf_pairwise.make(hf_pairwise.PairwiseOptions(str(tiny_model), max_tokens=4096), make_context("a")))
    options = hf_pairwise.PairwiseOptions(str(tiny_model), max_tokens=4096, batch_size=1)
    second = judged(hf_pairwise.make(options, make_context("b")))
    assert [j.preference for j in first] == pytest.approx([j.preference for j in second], abs=1e-5)


def test_what_is_too_long_for_a_pairwise_judge_has_failed(tiny_model, make_context):
    judge = hf_pairwise.make(hf_pairwise.PairwiseOptions(str(tiny_model), max_tokens=64), make_context())
    assert [j.status for j in judged(judge)] == ["failed", "failed", "tie"]


def test_the_fences_of_a_pairwise_judge_are_marked_by_what_stands_in_them(tiny_model, make_context):
    judge = hf_pairwise.make(hf_pairwise.PairwiseOptions(str(tiny_model)), make_context())
    requests = {judge._request(PAIRS[0], "one", other) for other in ("two", "three", "two")}
    assert len({request.split("mark ")[1][:16] for request in requests}) == 2
    assert judge.template == load_template("hh")


def brevity(prompt: str, response: str) -> float:
    if response == "raise":
        raise RuntimeError("no\nmodel for s3cr3t-0123456789")
    return float("nan") if response == "nan" else -len(response)


def test_a_gold_judge_prefers_what_its_reward_scores_higher(make_context, monkeypatch):
    monkeypatch.setenv("A_SECRET_KEY", "s3cr3t-0123456789")
    sides = [("ab", "abc"), ("abc", "ab"), ("ab", "cd"), ("raise", "a"), ("nan", "a")]
    comparisons = [Comparison(str(i), PROMPT, *side) for i, side in enumerate(sides)]
    options = gold.GoldOptions("tests.evaluation.judges.test_local:brevity")
    gold.check(options)
    judgements = judged(gold.make(options, make_context()), comparisons)
    assert [(j.status, j.preference) for j in judgements] == [
        ("ok", 1.0),
        ("ok", 0.0),
        ("tie", 0.5),
        ("failed", None),
        ("failed", None),
    ]
    assert judgements[3].detail == "RuntimeError: no model for (A_SECRET_KEY)"
    close = judged(gold.make(gold.GoldOptions(options.reward, margin=1.0), make_context()), comparisons[:1])
    assert close[0].status == "tie"
    with pytest.raises(UserError, match="neither registered nor"):
        gold.check(gold.GoldOptions("brevity"))
    with pytest.raises(UserError, match=r"judge\.margin must be a number at least 0, got -1\.0"):
        JUDGES.get("gold").check(gold.GoldOptions(options.reward, margin=-1.0))


def test_a_gold_judge_s_agreement_says_how_far_labels_follow_the_reward(make_context):
    pairs = [Preference(PROMPT, "a" * (i % 4 + 1), "bb") for i in range(8)]  # chosen shorter, equal, longer, longer
    judge = gold.make(gold.GoldOptions("tests.evaluation.judges.test_local:brevity"), make_context(held_out=pairs))
    assert (judge.agreement.n, judge.agreement.accuracy) == (8, (2 * 1 + 2 * 0.5) / 8)
