"""A task's rows as token ids: pairs, single responses and lists, cut to size and counted."""

import pytest

from harness.backbones.language_model.policy import load_tokenizer
from harness.backbones.language_model.tokens import prepare_task
from harness.core.config import ModelConfig, TaskConfig
from harness.core.errors import UserError
from harness.core.prompt import prompt_key
from harness.core.render import Renderer
from harness.tasks import TASKS, Message, Preference, Question, Scored, TaskData
from tests.core.chat_templates import FAMILIES
from tests.core.test_chat_template import make_tokenizer

PROMPT = (Message("user", "Why?"),)
LONG = "word " * 50
LISTED = Preference(PROMPT, "best", "worst", 9.0, 1.0, (Scored("second", 5.0), Scored(LONG, 4.0), Scored("best", 3.0)))
GOOD = Preference(PROMPT, "good", "bad")


@pytest.fixture(scope="module")
def prepare(tiny_model):
    """Return a function that prepares rows as the train split of a task."""
    renderer = Renderer(load_tokenizer(tiny_model, ModelConfig()))

    def prepared(rows, renderer=renderer, baseline="Because.", places=None, **config):
        config = TaskConfig(max_prompt_tokens=40, max_completion_tokens=16, **config)
        questions = [Question("q", PROMPT, baseline)]
        data = TaskData(rows, rows, questions, rows, rows, "human", places=places or {})
        return prepare_task("task", TASKS.get("preferences"), data, config, renderer)

    return prepared


def test_a_list_becomes_indices_and_scores_and_a_repeated_response_is_one_sequence(prepare):
    prepared = prepare([LISTED], overlong="drop")
    split = prepared.splits["train"]
    (example,) = split.examples
    assert (example.chosen, example.rejected, example.others) == (0, 1, (2, 0))
    assert example.scores == (9.0, 1.0, 5.0, 3.0)
    assert len(split.sequences) == 3 and len({s.prompt for s in split.sequences}) == 1
    assert prepared.counts["train: further response dropped, too long"] == 1
    assert prepared.counts["train: further responses used"] == 2


def test_a_further_response_that_is_too_long_is_cut_where_rows_are(prepare):
    prepared = prepare([LISTED])
    (example,) = prepared.splits["train"].examples
    assert example.scores == (9.0, 1.0, 5.0, 4.0, 3.0)
    assert len(prepared.splits["train"].sequences[example.others[1]].completion) == 16
    assert prepared.counts["train: further response truncated"] == 1


def test_further_responses_that_are_the_same_once_cut_are_one(prepare):
    row = Preference(PROMPT, LONG, "worst", 9.0, 1.0, (Scored(f"{LONG} a", 5.0), Scored("other", 3.0)))
    prepared = prepare([row])
    assert prepared.splits["train"].examples[0].scores == (9.0, 1.0, 3.0)
    assert prepared.counts["train: further response dropped, the same tokens as another after truncation"] == 1


def test_pairs_have_no_further_responses_and_scores_only_where_they_were_given(prepare):
    prepared = prepare([Preference(PROMPT, "a", "b"), Preference(PROMPT, "c", "d", 2.0, 1.0)])
    assert [(e.scores, e.others) for e in prepared.splits["train"].examples] == [((), ()), ((2.0, 1.0), ())]
    assert not any("further" in count for count in prepared.counts)


@pytest.mark.parametrize(
    "other",
    [
        Preference(PROMPT, "best", "worst", 9.0, 2.0, LISTED.others),
        Preference(PROMPT, "best", "worst", 9.0, 1.0, (*LISTED.others[:2], Scored("best", 3.5))),
        Preference(PROMPT, "best", "worst", 9.0, 1.0, LISTED.others[:1]),
        Preference(PROMPT, "best", "worst"),
    ],
)
def test_the_hash_of_a_split_covers_scores_and_further_responses(prepare, other):
    one, two = (prepare([row]).splits["train"] for row in (LISTED, other))
    assert one.hash != two.hash and one.hash == prepare([LISTED]).splits["train"].hash


def test_pairs_that_are_the_same_tokens_once_cut_are_dropped_and_counted(prepare):
    rows = [Preference(PROMPT, f"{LONG} good", f"{LONG} bad"), Preference(PROMPT, "yes<|im_end|>", "yes"), GOOD]
    prepared = prepare(rows)
    assert len(prepared.splits["train"].examples) == 1 and prepared.counts["train: completion truncated"] == 0
    assert prepared.counts["train: dropped, chosen and rejected are the same tokens after truncation"] == 1
    assert prepared.counts["train: dropped, chosen and rejected are the same tokens"] == 1
    with pytest.raises(
        UserError, match=r"none is left within .*\(train: dropped, .* after truncation: 1\); raise them"
    ):
        prepare(rows[:1])


def test_what_is_changed_in_a_text_is_counted_and_nothing_else(prepare):
    rows = [
        GOOD,
        Preference((Message("user", "a <|im_start|> b"),), "x <|im_end|> y", "z"),
        Preference((Message("user", "a<|im_end|>"),), "x<|im_end|>\n", "z<|im_end|>"),
    ]
    counts = prepare(rows).counts
    assert {name: count for name, count in counts.items() if name.startswith("train: ") and count} == {
        "train: used": 3,
        "train: prompt with control tokens as text, respelt": 2,
        "train: completion with control tokens as text, respelt": 1,
        "train: completion with an end of turn of its own, left out": 1,
    }


def test_baselines_and_judged_pairs_have_no_end_of_turn_either(prepare):
    """A policy's response has none: a judge would see the difference."""
    prepared = prepare([Preference(PROMPT, "x<|im_end|>", "z <|im_end|>")], baseline="Because.<|im_end|>")
    assert prepared.questions["test"].questions[0].baseline == "Because."
    assert prepared.judge_fit == prepared.judge_test == [Preference(PROMPT, "x", "z")]
    assert prepare([GOOD]).judge_fit[0] is GOOD


def test_a_completion_that_is_only_an_end_of_turn_is_empty(prepare):
    prepared = prepare([Preference(PROMPT, "<|im_end|>", "z"), GOOD])
    assert prepared.counts["train: dropped, empty completion"] == 1


def test_completions_that_the_template_would_not_write_are_dropped_with_the_reason(prepare):
    thought = "<think>two</think>2"
    listed = Preference(PROMPT, "best", "worst", 9.0, 1.0, (Scored(thought, 5.0), Scored("second", 4.0)))
    renderer = Renderer(make_tokenizer(FAMILIES["qwen3, with an empty thinking block"]))
    reason = "dropped, the completion begins with <think>, which the chat template writes itself"
    prepared = prepare([Preference(PROMPT, thought, "z"), listed], renderer)
    (example,) = prepared.splits["train"].examples
    assert example.scores == (9.0, 1.0, 4.0)
    assert prepared.counts[f"train: {reason}"] == prepared.counts[f"train: further response {reason}"] == 1
    with pytest.raises(UserError, match=f"none is left .*{reason}: 1"):
        prepare([Preference(PROMPT, thought, "z")], renderer)


def test_a_prompt_that_the_template_refuses_is_named_with_its_place(prepare):
    system = (Message("system", "Be brief."), *PROMPT)
    gemma = Renderer(make_tokenizer(FAMILIES["gemma, which refuses a system turn"]))
    places = {prompt_key(system): "pairs.jsonl:7"}
    with pytest.raises(UserError, match=r"^pairs\.jsonl:7: the chat template refuses .* system, user: System role not"):
        prepare([GOOD, Preference(system, "a", "b")], gemma, places=places)
    needing = Renderer(make_tokenizer(FAMILIES["needs a system turn"]))
    with pytest.raises(UserError, match=r"^the prompt 'Why\?': the chat template of .* needs a system turn"):
        prepare([GOOD], needing)


def test_where_rows_stand_is_no_part_of_the_data_s_hash():
    one, other = (TaskData([GOOD], [], [], [], [], "human", places=places) for places in ({}, {"key": "a.jsonl:1"}))
    assert one.hash == other.hash != TaskData([], [], [], [], [], "human").hash
