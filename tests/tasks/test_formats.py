"""How rows in each accepted format are parsed, and the errors for other rows."""

import json

import pytest

from harness.core.errors import UserError
from harness.tasks import Message, Preference, Scored
from harness.tasks.formats import Dropped, parse_dialogue, parse_standard
from harness.tasks.rows import Row


def parse(**values):
    return parse_standard(Row(values, "data.jsonl:7", "train"))


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


ASK = (Message("user", "Why?"),)
LONG = (Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Why?"))
PAIR = {"chosen": "Because.", "rejected": "No."}
TURNS = [user("Hi"), assistant("Hello."), user("Why?")]
SYSTEM = {"role": "system", "content": "Be brief."}
BRIEF = (Message("system", "Be brief."), *ASK)


@pytest.mark.parametrize(
    "values, prompt",
    [
        ({"prompt": "Why?", **PAIR}, ASK),
        ({"prompt": "Why?", "chosen": " Because.\n", "rejected": "No. "}, ASK),
        ({"prompt": [user("Why?")], **PAIR}, ASK),
        ({"prompt": TURNS, "chosen": [assistant("Because.")], "rejected": [assistant("No.")]}, LONG),
        # both answers repeat the prompt, as text and as messages
        (
            {
                "prompt": "Why?",
                "chosen": [user("Why?"), assistant("Because.")],
                "rejected": [user("Why? "), assistant("No.")],
            },
            ASK,
        ),
        ({"prompt": TURNS, "chosen": [*TURNS, assistant("Because.")], "rejected": [*TURNS, assistant("No.")]}, LONG),
        # whole conversations instead of a prompt
        ({"chosen": [*TURNS, assistant("Because.")], "rejected": [*TURNS, assistant("No.")]}, LONG),
        (
            {
                "prompt": None,
                "chosen": [user("Why?"), assistant("Because.")],
                "rejected": [user("Why?"), assistant("No.")],
            },
            ASK,
        ),
        ({"chosen": "\n\nHuman: Why?\n\nAssistant: Because.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."}, ASK),
        ({"prompt": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:", **PAIR}, LONG),
    ],
)
def test_forms_of_a_pair(values, prompt):
    record = parse(**values)
    assert record.prompt == prompt
    assert record.preference == Preference(prompt, "Because.", "No.")
    assert record.baseline == "Because." and record.split == "train"


@pytest.mark.parametrize("completion", ["Because.", [assistant("Because.")], [user("Why?"), assistant("Because.")]])
@pytest.mark.parametrize("label", [True, False, 1, 0])
def test_forms_of_an_unpaired_row(completion, label):
    record = parse(prompt="Why?", completion=completion, label=label)
    sides = ("Because.", None) if label else (None, "Because.")
    assert record.preference == Preference(ASK, *sides) and not record.preference.paired
    assert record.baseline == ("Because." if label else None)


def test_an_unpaired_row_may_be_a_whole_conversation():
    record = parse(completion=[*TURNS, assistant("Because.")], label=True)
    assert record.preference == Preference(LONG, "Because.", None)


def test_a_pair_may_have_scores():
    """The columns of HuggingFaceH4/ultrafeedback_binarized."""
    record = parse(
        prompt="Why?", prompt_id="0f", chosen=[user("Why?"), assistant("Because.")], score_chosen=8,
        rejected=[user("Why?"), assistant("No.")], score_rejected=6.5, messages=[user("Why?"), assistant("Because.")],
    )  # fmt: skip
    assert record.preference == Preference(ASK, "Because.", "No.", 8.0, 6.5)
    assert record.preference.scores == (8.0, 6.5)


def rated(response, **columns):
    return {"model": "some", "response": response, "annotations": {}, **columns}


def aspects(*ratings):
    """Ratings as UltraFeedback has them: text under each aspect."""
    return {
        name: {"Rating": r, "Rationale": "..."} for name, r in zip(("helpfulness", "honesty"), ratings, strict=True)
    }


LISTED = Preference(ASK, "Because.", "No.", 8.0, 2.0, (Scored("So.", 5.0), Scored("Well.", 3.5)))


@pytest.mark.parametrize(
    "values",
    [
        {
            "prompt": "Why?",
            "responses": [
                {"text": "No.", "score": 2},
                {"text": "So. ", "score": 5},
                {"text": "Well.", "score": 3.5},
                {"text": "Because.", "score": 8},
            ],
        },
        {
            "prompt": [user("Why?")],
            "responses": [
                {"text": "Because.", "score": 8.0},
                {"text": "So.", "score": 5},
                {"text": "Because.", "score": 1},
                {"text": " ", "score": 9},
                {"text": "Well.", "score": 3.5},
                {"text": "No.", "score": 2},
            ],
        },
        {
            "instruction": "Why?",
            "source": "flan",
            "completions": [
                rated("So.", overall_score=5.0, **{"fine-grained_score": 1.0}),
                rated("No.", overall_score=2),
                rated("Because.", overall_score=8.0),
                rated("Well.", overall_score=3.5),
            ],
        },
        {
            "instruction": "Why?",
            "completions": [
                rated("So.", annotations=aspects("5", "N/A")),
                rated("No.", **{"fine-grained_score": 2.0}),
                rated("Because.", overall_score=8),
                rated("Unrated"),
                rated("N/A", annotations=aspects("N/A", "N/A")),
                rated("Well.", overall_score=None, annotations=aspects("3", "4")),
            ],
        },
    ],
    ids=["text and scores", "repeated and empty", "overall scores", "ratings of aspects"],
)
def test_forms_of_a_list(values):
    record = parse(**values)
    assert record.preference == LISTED and record.baseline == "Because." and record.prompt == ASK
    assert record.preference.scores == (8.0, 2.0, 5.0, 3.5)


def test_of_responses_that_score_alike_the_first_counts_as_the_better():
    responses = [{"text": text, "score": score} for text, score in [("a", 1), ("b", 2), ("c", 2), ("d", 1)]]
    assert parse(prompt="Why?", responses=responses).preference == Preference(
        ASK, "b", "d", 2.0, 1.0, (Scored("c", 2.0), Scored("a", 1.0))
    )


def test_a_prompt_that_only_mentions_speakers_is_text():
    text = "Human: is this a dialogue?\n\nAssistant: no, I go on"
    assert parse(prompt=text, **PAIR).prompt == (Message("user", text),)


ACCEPTED = "accepted: prompt/chosen/rejected, prompt/completion/label, prompt/responses, or instruction/completions"


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"prompt": "a", "chosen": "b", "rejcted": "c"},
            f"no column 'rejected' (is 'rejcted' meant?); columns here: prompt, chosen, rejcted; {ACCEPTED}",
        ),
        ({"question": "a", "answer": "b"}, f"no column 'chosen'; columns here: question, answer; {ACCEPTED}"),
        ({}, f"no column 'chosen'; columns here: none; {ACCEPTED}"),
        (
            {"chosen": "a", "rejected": "b"},
            f"no column 'prompt'; columns here: chosen, rejected; {ACCEPTED}; without prompt, whole conversations",
        ),
        ({"prompt": "a", "chosen": None, "rejected": "b"}, f"column 'chosen' is null; {ACCEPTED}"),
        ({"prompt": "a", "completion": "b"}, "no column 'label'"),
        ({"prompt": "a", "label": True}, "no column 'completion'"),
        (
            {"prompt": "a", "completion": "b", "label": "good"},
            "column 'label' must be true (desirable) or false, got 'good'",
        ),
        ({"prompt": "a", "completion": "b", "label": 2}, "column 'label' must be true (desirable) or false, got 2"),
        ({"prompt": 3, **PAIR}, "column 'prompt' must be text, got a number"),
        (
            {"prompt": "a", "chosen": {"text": "b"}, "rejected": "c"},
            "column 'chosen' must be text, got an object with 'text'",
        ),
        ({"prompt": ["a"], **PAIR}, "column 'prompt': message 1 must be an object with 'role' and 'content', got text"),
        (
            {"prompt": [{"from": "human"}], **PAIR},
            "message 1 must be an object with 'role' and 'content', got an object with 'from'",
        ),
        (
            {"prompt": [user("a"), {"role": "bot", "content": "b"}], **PAIR},
            "column 'prompt': message 2 has the role 'bot'; accepted: system, user, assistant",
        ),
        ({"prompt": [user(None)], **PAIR}, "column 'prompt': message 1: 'content' must be text, got null"),
        ({"prompt": "a\ud800", **PAIR}, "column 'prompt' holds a broken character (a lone surrogate) at position 1"),
        ({"prompt": "a", **PAIR, "score_chosen": 3}, "'score_rejected' must be a finite number, got None"),
        ({"prompt": "a", **PAIR, "score_chosen": 10**400}, "'score_chosen' must be a finite number, got 1000"),
        (
            {"prompt": "a", **PAIR, "score_chosen": "3", "score_rejected": 1},
            "'score_chosen' must be a finite number, got '3'",
        ),
        ({"prompt": "a", "responses": "b"}, "column 'responses' must be a list of objects, got text"),
        (
            {"prompt": "a", "responses": ["b"]},
            "column 'responses': response 1 must be an object with 'text' (text) and its score, got text",
        ),
        (
            {"prompt": "a", "responses": [{"text": "b", "score": 1}, {"text": "c"}]},
            "column 'responses': response 2: 'score' must be a finite number, got None",
        ),
        (
            {"prompt": "a", "responses": [{"text": "b", "score": float("nan")}]},
            "response 1: 'score' must be a finite number, got nan",
        ),
        ({"prompt": "a", "responses": [{"text": "b\ud800", "score": 1}]}, "response 1 holds a broken character"),
        ({"responses": [{"text": "b", "score": 1}]}, "no column 'prompt'"),
        (
            {"instruction": "a", "completions": [{"text": "b"}]},
            "response 1 must be an object with 'response' (text) and its score, got an object with 'text'",
        ),
        ({"completions": []}, "no column 'instruction'"),
        (
            {"prompt": "a", "chosen": [assistant("\udfff")], "rejected": "b"},
            "column 'chosen': message 1 holds a broken character",
        ),
    ],
)
def test_wrong_columns_and_types_are_errors_with_the_place(values, message):
    with pytest.raises(UserError) as error:
        parse(**values)
    assert str(error.value).startswith("data.jsonl:7: ") and message in str(error.value)


@pytest.mark.parametrize(
    "values, reason",
    [
        ({"prompt": "a", "chosen": " \n", "rejected": "b"}, "empty completion"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "empty completion"),
        ({"prompt": "a", "completion": "", "label": True}, "empty completion"),
        ({"prompt": "a", "chosen": "b", "rejected": " b"}, "chosen and rejected are the same"),
        ({"prompt": "a", **PAIR, "score_chosen": 3, "score_rejected": 3.0}, "chosen does not score above rejected"),
        (
            {"prompt": "a", "responses": [{"text": "b", "score": 1}, {"text": "b ", "score": 2}]},
            "fewer than two responses with a score",
        ),
        (
            {"prompt": "a", "responses": [{"text": "b", "score": 1}, {"text": "c", "score": 1}]},
            "all responses score alike",
        ),
        ({"instruction": "a", "completions": []}, "fewer than two responses with a score"),
        ({"prompt": " ", **PAIR}, "empty turn in the prompt"),
        ({"prompt": [], **PAIR}, "prompt does not end with a user turn"),
        ({"prompt": [user("a"), assistant("b")], **PAIR}, "prompt does not end with a user turn"),
        (
            {"prompt": "a", "chosen": [user("x"), assistant("y")], "rejected": "z"},
            "completion is a conversation on another prompt",
        ),
        ({"prompt": "a", "chosen": [user("a")], "rejected": "z"}, "last turn is not the assistant's"),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]},
            "chosen and rejected have different prompts",
        ),
        (
            {"prompt": "a", "chosen": "\n\nHuman: x\n\nAssistant: y", "rejected": "z"},
            "completion is a conversation on another prompt",
        ),
        (
            {"prompt": "a", "chosen": "[{'role': 'user', 'content': 'a'}]", "rejected": "z"},
            "messages as text that is not JSON",
        ),
        (
            {"prompt": "a", "chosen": [SYSTEM, user("a"), assistant("b")], "rejected": "c"},
            "chosen and rejected have different prompts",
        ),
        ({"prompt": "Be nice.\n\nHuman: a\n\nAssistant:", **PAIR}, "not a dialogue that a human opens"),
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a\n\nAssistant: b"}, "last turn is not the assistant's"),
        ({"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}, "not a dialogue that a human opens"),
        (
            {"chosen": "\n\nHuman:\n\nAssistant: a", "rejected": "\n\nHuman:\n\nAssistant: b"},
            "empty turn in the prompt",
        ),
    ],
)
def test_rows_that_real_data_contain_now_and_then_are_dropped_with_a_reason(values, reason):
    with pytest.raises(Dropped) as dropped:
        parse(**values)
    assert str(dropped.value) == reason


def as_dialogue(answer, line="\n"):
    return f"{line}{line}Human: Why?{line}{line}Assistant: {answer}"


@pytest.mark.parametrize(
    ("asked", "answered", "prompt"),
    [
        ("Why?", as_dialogue, ASK),
        (as_dialogue("").rstrip(), as_dialogue, ASK),
        (as_dialogue("").rstrip(), lambda answer: f" {answer}", ASK),
        ("\n\nHuman: Why?", lambda answer: f"\n\nAssistant: {answer}", ASK),
        ([user("Why?")], as_dialogue, ASK),
        (None, lambda answer: as_dialogue(answer, "\r\n"), ASK),
        (as_dialogue("", "\r\n").rstrip(), lambda answer: as_dialogue(answer, "\r\n"), ASK),
        ("Why?", lambda answer: json.dumps([user("Why?"), assistant(answer)]), ASK),
        ("Why?", lambda answer: json.dumps([{"id": 1, **user("Why?")}, assistant(answer)]), ASK),
        (json.dumps([user("Why?")]), lambda answer: answer, ASK),
        (None, lambda answer: json.dumps([SYSTEM, user("Why?"), assistant(answer)]), BRIEF),
        ("Why?", lambda answer: [SYSTEM, user("Why?"), assistant(answer)], BRIEF),
        ([SYSTEM, user("Why?")], lambda answer: [user("Why?"), assistant(answer)], BRIEF),
        ([SYSTEM, user("Why?")], lambda answer: [SYSTEM, user("Why?"), assistant(answer)], BRIEF),
        (TURNS[-1]["content"], lambda answer: [*TURNS, assistant(answer)], LONG),
    ],
)
def test_a_conversation_beside_a_prompt_is_its_answer_and_what_comes_before_is_the_prompt(asked, answered, prompt):
    """In Anthropic's format, as messages or as JSON text; a system turn may be in the conversation alone."""
    parsed = parse(prompt=asked, chosen=answered("Because."), rejected=answered("No."))
    assert parsed.prompt == prompt and parsed.preference == Preference(prompt, "Because.", "No.")
    parsed = parse(prompt=asked, completion=answered("Because."), label=True)
    assert parsed.prompt == prompt and parsed.preference == Preference(prompt, "Because.", None)


@pytest.mark.parametrize(
    "text",
    [
        "Human: I am.\n\nAssistant: So am I.",
        '["role"]',
        '{"role": "user"}',
        '[{"role": "admin", "name": "Ann"}]',
        "[{'role': 'admin', 'name': 'Ann'}]",
        '[{"content": "Ann"}]',
        "a\r\nb",
    ],
)
def test_an_answer_that_only_looks_like_a_conversation_is_text(text):
    assert parse(prompt="Why?", chosen=text, rejected="No.").preference == Preference(ASK, text, "No.")


def test_a_dialogue_is_turns_in_order_without_surrounding_space():
    text = "\n\nHuman: Hi \n\nAssistant:  Hello.\n\nHow are you?\n\nHuman: Fine"
    assert parse_dialogue(text) == (
        Message("user", "Hi"),
        Message("assistant", "Hello.\n\nHow are you?"),
        Message("user", "Fine"),
    )


def test_a_speaker_s_name_inside_a_line_is_text():
    text = "\n\nHuman: Say 'Assistant: hi'.\nHuman: is a word\n\nAssistant: Human: no.  Human: yes\n\nHumans: we"
    assert parse_dialogue(text) == (
        Message("user", "Say 'Assistant: hi'.\nHuman: is a word"),
        Message("assistant", "Human: no.  Human: yes\n\nHumans: we"),
    )


def test_a_marker_after_the_same_speaker_is_text_of_one_turn():
    text = "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c\n\nHuman: d\n\nHuman: e"
    assert parse_dialogue(text) == (
        Message("user", "a"),
        Message("assistant", "b\n\nAssistant: c"),
        Message("user", "d\n\nHuman: e"),
    )
