"""Chat templates: prompt and completion are the template's own rendering of the dialogue, or one line says why not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from harness.core.chat_template import Unrenderable
from harness.core.errors import UserError
from harness.core.prompt import Message
from harness.core.render import Renderer
from tests.core.chat_templates import CHATML, FAMILIES, IM, R1, Family

USER, ANSWER = Message("user", "What is a river?"), "A stream of water: it flows."
SYSTEM = Message("system", "Be brief.")
TEXTS = [
    USER.content,
    ANSWER,
    "user assistant system model\n\nCurrent date: 2024-07-26 USER: [INST] <<SYS>> ASSISTANT: what who when where why",
]


def byte_level() -> Tokenizer:
    """Bytes with GPT-2's words: white space is part of the word behind it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def sentencepiece() -> Tokenizer:
    """Like Llama 2's: a space is put before a text, but not behind a special token."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    letters = [chr(i) for i in range(10, 127)] + ["é", "ü"]
    tokenizer.train_from_iterator(
        TEXTS * 3, trainers.BpeTrainer(vocab_size=500, initial_alphabet=letters, show_progress=False)
    )
    return tokenizer


KINDS = {"byte-level": byte_level, "sentencepiece": sentencepiece}
TRAINED = {kind: make().to_str() for kind, make in KINDS.items()}


def make_tokenizer(family: Family, kind: str = "byte-level") -> PreTrainedTokenizerFast:
    bos, eos, *others = family.special
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(TRAINED[kind]), bos_token=bos, eos_token=eos, extra_special_tokens=others
    )
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in family.added])
    tokenizer.chat_template = family.template
    return tokenizer


def rendered(renderer: Renderer, prompt: tuple[Message, ...], answer: str) -> list[int]:
    asked = renderer.prompt(prompt, limit=1000, keep="end")
    completion, cut = renderer.completion(answer, limit=1000, after=asked)
    assert not cut
    return [*asked.ids, *completion]


def own_rendering(tokenizer, prompt: tuple[Message, ...], answer: str) -> list[int]:
    """The oracle: the template's rendering of the dialogue, as text, tokenised at once."""
    turns = [{"role": m.role, "content": m.content} for m in (*prompt, Message("assistant", answer))]
    template = tokenizer.chat_template.replace("{{ strftime_now('%Y-%m-%d') }}", "2024-07-26")
    text = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_prompt_and_completion_are_the_template_s_own_rendering(name, kind):
    """Token by token, up to the end of the turn; behind it templates write a line break or the end of the text."""
    tokenizer = make_tokenizer(FAMILIES[name], kind)
    renderer = Renderer(tokenizer)
    prompts = [(USER,), (USER, Message("assistant", "A stream."), Message("user", "Where?"))]
    if "refuses" not in name:
        prompts = [(SYSTEM, *prompt) for prompt in prompts] + ([] if "needs" in name else prompts)
    answers = [ANSWER, "1. who\n\n2. what", "[a] list", '"Where?"', "```\ncode\n```", "élan"]
    for prompt in prompts:
        for answer in answers:
            ids, whole = rendered(renderer, prompt, answer), own_rendering(tokenizer, prompt, answer)
            assert ids == whole[: len(ids)] and ids[-1] == renderer.end_of_turn
            assert whole[len(ids) :] in ([], *map(list, behind(tokenizer)))
            assert answer in renderer.decode(ids)


def behind(tokenizer):
    line = tokenizer("<|end|>\n", add_special_tokens=False)["input_ids"][-1:]
    return [line, [*line, tokenizer.eos_token_id]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_policy_is_sampled_from_the_prompt_that_it_is_trained_on_and_it_opens_the_answer(name, kind):
    """The prompt holds all of the header, so that the completion begins with the answer itself."""
    tokenizer = make_tokenizer(FAMILIES[name], kind)
    renderer = Renderer(tokenizer)
    completion, _ = renderer.completion(ANSWER, limit=1000)
    assert tokenizer.decode(completion).strip().startswith(ANSWER)
    assert renderer.decode(completion) == ANSWER, "what is sampled is read without the end of the turn"


@pytest.mark.parametrize(
    ("name", "ends"),
    {
        "no generation prompt": "<|im_start|>assistant\n",
        "no generation prompt, tags with a space": "ASSISTANT:",
        "qwen3, with an empty thinking block": "assistant\n<think>\n\n</think>\n\n",
        "r1 distill, which opens a thinking block": "<|Assistant|>",
        "gpt-oss, with channels and a date": "<|channel|>final<|message|>",
    }.items(),
)
def test_a_prompt_with_another_end_than_the_generation_prompt_is_told(name, ends):
    renderer = Renderer(make_tokenizer(FAMILIES[name]))
    assert renderer.prompt((USER,), limit=99, keep="end").text.endswith(ends)
    note = renderer.notes[0]
    assert repr(ends)[1:-1] in note and "as in its own dialogues" in note


@pytest.mark.parametrize("name", ["chatml", "llama-2", "gemma, which refuses a system turn", "mistral", "phi-3"])
def test_of_a_usual_template_there_is_nothing_to_tell(name):
    assert not Renderer(make_tokenizer(FAMILIES[name])).notes


@pytest.mark.parametrize(
    ("form", "written"), [("%Y-%m-%d", "2024-07-26"), ("%A, %-d %B %Y", "Friday, 26 July 2024"), ("%j%%", "208%")]
)
def test_a_template_that_writes_the_date_gives_the_same_prompt_each_day_and_is_told(form, written):
    family = FAMILIES["gpt-oss, with channels and a date"]
    renderer = Renderer(make_tokenizer(replace(family, template=family.template.replace("%Y-%m-%d", form))))
    assert f"Current date: {written}<" in renderer.prompt((USER,), limit=99, keep="end").text
    assert "writes the date: 26 July 2024" in renderer.notes[-1]


def test_a_template_without_any_text_of_its_own_continues_the_prompt_and_is_told():
    family = Family("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}", ("<s>", "</s>"))
    renderer = Renderer(make_tokenizer(family))
    assert renderer.tokenizer.decode(rendered(renderer, (USER,), ANSWER)) == f"<s>{USER.content}{ANSWER}</s>"
    assert "marks no turns" in renderer.notes[0]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "never ends the assistant's turn"),
        (
            "{% for m in messages %}{% if not loop.first %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
            "prompt",
        ),
        ("{{ messages[-1].content }}{{ eos_token }}", "leaves out or changes a prompt"),
        ("{{ messages[0].content }}{{ eos_token }}", "leaves out or changes an answer"),
        ("{{ raise_exception('not\n today') }}", "refuses a prompt with the turns system, user: not"),
        ("{% for m in messages %}{{ m.content }", "refuses a prompt"),
        (CHATML.replace("im_end", "end"), r"never ends .* '<\|end\|>\\n', which holds no special token"),
        ({"tool_use": CHATML}, "refuses a prompt"),
    ],
)
def test_a_template_by_which_nothing_can_be_trained_is_refused_in_one_line(template, message):
    with pytest.raises(UserError, match=message) as error:
        Renderer(make_tokenizer(Family(template, IM)))
    assert "\n" not in str(error.value) and "choose another model" in str(error.value)


def test_a_template_that_leaves_out_a_turn_is_refused_and_one_that_changes_it_is_known():
    template = (
        "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    renderer = Renderer(make_tokenizer(Family(template, IM)))
    prompt = renderer.prompt((SYSTEM, USER), limit=99, keep="end")
    with pytest.raises(UserError, match="leaves out the system turn"):
        renderer.is_changed(prompt)
    assert not renderer.is_changed(renderer.prompt((USER,), limit=99, keep="end"))
    shouting = Renderer(make_tokenizer(Family(CHATML.replace("m.content", "m.content.replace('river', 'RIVER')"), IM)))
    assert shouting.is_changed(shouting.prompt((USER,), limit=99, keep="end"))


def test_a_missing_system_turn_is_named_and_a_truncated_prompt_keeps_it():
    renderer = Renderer(make_tokenizer(FAMILIES["needs a system turn"]))
    with pytest.raises(UserError, match="needs a system turn, and this prompt has the turns user: give"):
        renderer.prompt((USER,), limit=99, keep="end")
    limit = len(renderer.prompt((SYSTEM, USER), limit=999, keep="end").ids) - 3
    short = renderer.prompt((SYSTEM, USER, Message("assistant", "No."), USER), limit=limit, keep="end")
    assert short.truncated and [turn.role for turn in short.turns] == ["system", "user"]


@pytest.mark.parametrize(
    ("name", "answer", "reason"),
    [
        ("qwen3, with an empty thinking block", "<think>\ntwo\n</think>\n\n2", "begins with <think>"),
        ("r1 distill, which opens a thinking block", "<think>two</think>2", "begins with <think>"),
        ("r1 distill, which opens a thinking block", "two</think>2", "changes the answer"),
        ("gpt-oss, with channels and a date", "<|channel|>analysis<|message|>two", "begins with <|channel|>"),
        ("chatml", "<|im_start|>assistant\ntwo", "begins with <|im_start|>"),
    ],
)
def test_an_answer_that_the_template_would_not_write_as_it_is_is_refused(name, answer, reason):
    renderer = Renderer(make_tokenizer(FAMILIES[name]))
    with pytest.raises(Unrenderable, match=reason.replace("|", r"\|")):
        renderer.completion(answer, limit=99)


def test_a_template_that_refuses_an_answer_says_why():
    template = "{% if 'no' in messages[-1].content %}{{ raise_exception('not no') }}{% endif %}" + CHATML
    renderer = Renderer(make_tokenizer(Family(template, IM)))
    with pytest.raises(Unrenderable, match="refuses a prompt with the turns user, assistant: not no"):
        renderer.completion("no", limit=99)


def test_reasoning_of_a_tokenizer_without_tokens_for_it_is_refused_too():
    renderer = Renderer(make_tokenizer(Family(FAMILIES["qwen3, with an empty thinking block"].template, IM)))
    with pytest.raises(Unrenderable, match="renders the prompt otherwise with this answer"):
        renderer.completion("<think>\ntwo\n</think>\n\n2", limit=99)


def test_a_character_that_is_used_for_padding_is_part_of_texts_too(tmp_path):
    """A policy may say "!" although its tokenizer pads with it."""
    make_tokenizer(FAMILIES["chatml"]).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, pad_token="!")
    renderer = Renderer(tokenizer)
    prompt = renderer.prompt((Message("user", "A river! Where?"),), limit=99, keep="end")
    ids, _ = renderer.completion("Here! Look!", limit=99, after=prompt)
    assert "A river! Where?" in renderer.text(prompt.ids, special=True)
    assert tokenizer.pad_token_id in ids and renderer.decode(ids) == "Here! Look!"


WORDS = ("ö", "ü", "ß", "<think>", "</think>", "<table>", "cat", "user", "--")


@pytest.mark.parametrize(
    "text", ["Für schöne Grüße", "<think>two</think>2", "<table>a", "a category", "the user -- me"]
)
def test_added_tokens_that_are_not_special_stay_as_they_are(text):
    """Umlauts (DeepSeek-LLM), reasoning (under a template without it), HTML (Gemma), words of the template itself."""
    tokenizer = make_tokenizer(Family(CHATML.replace("{% for", "-- user{% for", 1), IM, WORDS))
    renderer = Renderer(tokenizer)
    assert not renderer.is_respelt(text)
    whole = own_rendering(tokenizer, (Message("user", text),), text)
    assert rendered(renderer, (Message("user", text),), text) == whole[:-1], "all but the line break behind the turn"
    assert renderer.decode(renderer.completion(text, limit=99)[0]) == text
    limit = len(renderer.prompt((Message("user", text),), limit=99, keep="end").ids)
    assert (
        renderer.prompt((Message("user", f"one two three {text}"),), limit=limit, keep="end").turns[0].content == text
    )


@pytest.mark.parametrize(
    ("name", "word"),
    [("chatml", "<|im_start|>"), ("phi-3", "<|user|>"), ("r1 distill, which opens a thinking block", "<|User|>")],
)
def test_tokens_that_are_special_or_written_by_the_template_are_broken_up(name, word):
    renderer = Renderer(make_tokenizer(FAMILIES[name]))
    text, token = f"so {word} be it", renderer.tokenizer.convert_tokens_to_ids(word)
    assert renderer.is_respelt(text)
    honest = renderer.prompt((Message("user", "x"),), limit=99, keep="end").ids
    assert renderer.prompt((Message("user", text),), limit=99, keep="end").ids.count(token) == honest.count(token)
    assert token not in renderer.completion(text, limit=99)[0]


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n", " <|im_end|> \n<|endoftext|>"])
def test_an_end_of_turn_in_the_data_is_the_one_end_of_turn(end):
    """In data that were rendered before, for example; the text before it is as without it."""
    renderer = Renderer(make_tokenizer(Family(CHATML, ("<s>", "<|endoftext|>", "<|im_end|>"))))
    assert renderer.completion(ANSWER + end, limit=99) == renderer.completion(ANSWER, limit=99)
    assert renderer.without_end(ANSWER + end) == ANSWER and not renderer.is_respelt(ANSWER + end)
    assert renderer.without_end(f"{ANSWER} ") == f"{ANSWER} ", "white space alone is no end"


def test_without_a_template_it_is_the_tokenizer_s_own_end():
    renderer = Renderer(make_tokenizer(Family("", ("<s>", "</s>"))))
    assert renderer.completion(f"{ANSWER}</s>", limit=99) == renderer.completion(ANSWER, limit=99)


def test_a_prompt_that_is_cut_within_a_character_loses_all_of_it():
    renderer = Renderer(make_tokenizer(FAMILIES["chatml"]))
    whole = renderer.prompt((Message("user", "日本語の文章です"),), limit=999, keep="end")
    for limit in range(len(whole.ids) - 6, len(whole.ids)):
        cut = renderer.prompt((Message("user", "日本語の文章です"),), limit=limit, keep="end")
        assert cut.truncated and "\N{REPLACEMENT CHARACTER}" not in cut.text


def test_the_rule_is_by_what_a_template_writes_not_by_names():
    """A thinking block under other words."""
    family = Family(R1.replace("<think>", "(plan:"), FAMILIES["r1 distill, which opens a thinking block"].special)
    renderer = Renderer(make_tokenizer(family))
    assert renderer.prompt((USER,), limit=99, keep="end").text.endswith("<|Assistant|>")
