"""The request to a judge, and how its verdict is parsed."""

import math

import pytest

from harness.core.errors import UserError
from harness.core.prompt import Message
from harness.evaluation.base import Comparison
from harness.evaluation.endpoint.reply import Reply, UnparsableError
from harness.evaluation.judges.orders import both_orders, one_order, policy_first
from harness.evaluation.judges.template import FOLDER, Template, load_template

PROMPT = (Message("user", "Which?"),)
BUILT_IN = sorted(path.stem for path in FOLDER.glob("*.txt"))


def reply(text, tokens=(), finish_reason="stop") -> Reply:
    content = [
        {"token": token, "top_logprobs": [{"token": name, "logprob": logp} for name, logp in top.items()]}
        for token, top in tokens
    ]
    return Reply(
        {
            "message": {"content": text},
            "finish_reason": finish_reason,
            "logprobs": {"content": content} if tokens else None,
        }
    )


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_template_asks_for_the_verdict_that_it_reads(name):
    template = load_template(name)
    asked = template.fill(PROMPT, "one", "two")
    assert template.verdict in asked
    for label, sure in zip(template.labels, (1.0, 0.0), strict=True):
        assert template.read(reply(f"One is better.\n{template.verdict} {label}")) == sure
    for text in ("one", "two", "Which?"):
        assert asked.count(f"\n{text}\n") == 1


def test_the_shipped_templates():
    assert BUILT_IN == ["alpaca_eval", "dpo_hh", "dpo_tldr_concise", "dpo_tldr_simple", "hh", "tldr"]
    assert load_template("dpo_hh").labels == ("A", "B")


@pytest.mark.parametrize(
    "text", ["Preferred: 1", "Compared.\n\nPreferred: 1  \n", 'x\nPreferred: "1"', "Preferred: 2\nPreferred: 1"]
)
def test_the_last_line_is_the_verdict(text):
    assert load_template("hh").read(reply(text)) == 1.0


LONE = [  # with {} for the label
    "**Preferred: {}**",
    "**Preferred:** {}",
    "**Preferred**: {}",
    "Preferred: **{}**",
    "**Preferred:** **{}**",
    "***Preferred: {}***",
    "__Preferred: {}__",
    "_Preferred: {}_",
    "Preferred: {}.",
    "**Preferred: {}.**",
    "**Preferred: {}**.",
    "Preferred: [{}]",
    "Preferred: [[{}]]",
    "Preferred: ({}).",
    "Preferred: `{}`",
    "`Preferred: {}`",
    "Preferred: '{}'",
    "Preferred: “{}”",
    "### Preferred: {}",
    "## **Preferred: {}**",
    "# Preferred: {} #",
    "  **Preferred: {}**  ",
    "```\nPreferred: {}\n```",
    "Preferred: {}\n\n---\n",
    "**Preferred: {}\n**",
    "Preferred:{}\r\n",
]


@pytest.mark.parametrize("text", LONE)
@pytest.mark.parametrize("name", ["hh", "dpo_hh"])
def test_markdown_and_a_full_stop_around_a_lone_verdict_are_read(name, text):
    template = load_template(name)
    stem = template.verdict.removesuffix(":")
    for label, sure in zip(template.labels, (1.0, 0.0), strict=True):
        assert template.read(reply(f"One is clearer.\n{text.format(label).replace('Preferred', stem)}")) == sure


@pytest.mark.parametrize(
    "text",
    [
        "Preferred: 1 or 2",
        "Preferred: 1, 2",
        "Preferred: 1/2",
        "Preferred: [1] [2]",
        "Preferred: 1. Preferred: 2.",
        "**Preferred: 1** **Preferred: 2**",
        "**Preferred: 1** or **2**",
        "Preferred: neither 1 nor 2",
        "Preferred: not 1",
        "Preferred: -1",
        "Preferred: 1?",
        "Preferred: 1!",
        "Preferred: 1...",
        "Preferred: 11",
        "Preferred: 1.5",
        "Preferred: 12.",
        "Preferred: one",
        "Preferred:",
        "**Preferred:**",
        "**Preferred: **",
        "My verdict: **Preferred: 1**",
        "**Preferred: 1** because it is clearer",
        "Not Preferred: 2",
        "Preferred: ~~1~~",
        "~~Preferred: 1~~",
        "> Preferred: 1",
        "- Preferred: 1",
        '"Preferred: 1"',
        "1. Preferred: 2",
        "| Preferred: 1 |",
        "Preferred: 1 > 2",
        "Preferred: <b>1</b>",
        "preferred: 1",
        "1",
        "**1**",
        "**Preferred: 1**\nBut one could also prefer 2.",
        f"Preferred: 1{'*' * 100_000}x",
        f"{'*' * 100_000}Preferred: 1",
    ],
)
def test_a_verdict_is_never_guessed_from_prose(text):
    with pytest.raises(UnparsableError, match="no verdict in the last line"):
        load_template("hh").read(reply(f"Compared.\n{text}"))


def test_labels_may_be_markdown_themselves(tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("---\nlabels: ['[[A]]', '*']\nverdict: 'My choice is'\n---\n{prompt} {response_1} {response_2}")
    template = load_template(str(own))
    assert template.read(reply("My choice is [[A]]")) == template.read(reply("**My choice is [[A]].**")) == 1.0
    assert template.read(reply("My choice is *")) == 0.0


@pytest.mark.parametrize(
    ("token", "rest"), [("1", "**"), (" **1", "**"), ("[1]", ""), ("1.", ""), ('"1"', "")], ids=str
)
def test_a_label_in_markdown_is_graded_like_a_plain_one(token, rest):
    sure = {token: math.log(0.6), token.replace("1", "2"): math.log(0.2), "!": math.log(0.2)}
    template, answer = (
        load_template("hh"),
        reply(f"Preferred: {token}{rest}", [("Preferred: ", {}), (token, sure), (rest, {})]),
    )
    assert template.read(answer) == pytest.approx(0.75)
    assert template.grades(answer)


def test_logprobs_of_the_label_grade_the_verdict_wherever_it_stands():
    """`1` and ` 1` are the same label. The earlier 1 in the reasoning and other words are ignored."""
    tokens = [
        ("Response 1", {"1": math.log(0.01), "2": math.log(0.99)}),
        (" is", {" is": 0.0}),
        ("\nPreferred", {}),
        (":", {}),
        (" 1", {" 1": math.log(0.5), "1": math.log(0.1), " 2": math.log(0.2), " both": math.log(0.2)}),
    ]
    text = "".join(token for token, _ in tokens)
    assert load_template("hh").read(reply(text, tokens)) == pytest.approx(0.6 / 0.8)


@pytest.mark.parametrize(
    "tokens",
    [
        [("Preferred: 1", {"Preferred: 1": 0.0})],
        [("Pref", {}), ("erred:", {}), (" 1", {})],
        [("something", {"1": -1.0}), (" else", {})],
    ],
    ids=["one token", "no alternatives", "other text"],
)
def test_without_logprobs_for_the_label_the_text_decides(tokens):
    assert load_template("hh").read(reply("Preferred: 1", tokens)) == 1.0
    assert not load_template("hh").grades(reply("Preferred: 1", tokens))


@pytest.mark.parametrize("bad", [None, "text", {"content": "text"}, {"content": [{"token": 1}]}, {"content": [5]}])
def test_logprobs_of_another_shape_are_none(bad):
    answer = Reply({"message": {"content": "Preferred: 2"}, "finish_reason": "stop", "logprobs": bad})
    assert load_template("hh").read(answer) == 0.0


def test_what_is_no_verdict_says_why():
    template = load_template("dpo_hh")
    for text, why in (("", "empty answer"), ("More helpful: C", "no verdict"), ("More helpful: A and B", "no verdict")):
        with pytest.raises(UnparsableError, match=why):
            template.read(reply(text))
    with pytest.raises(UnparsableError, match="cut off"):
        template.read(reply("More helpful: A", finish_reason="length"))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("labels: [A, A]\nverdict: 'V:'", "two different"),
        ("labels: [A, B]", "need a verdict"),
        ("colour: blue", "only labels"),
        ("- a\n- b", "only labels"),
        ("{", "only labels"),
    ],
)
def test_a_template_s_settings_are_checked(tmp_path, head, message):
    own = tmp_path / "own.txt"
    own.write_text(f"---\n{head}\n---\n{{prompt}} {{response_1}} {{response_2}}")
    with pytest.raises(UserError, match=message):
        load_template(str(own))


def test_the_hash_follows_what_is_asked_and_read_and_not_the_source(tmp_path):
    own = tmp_path / "own.txt"

    def hash_of(head: str) -> str:
        own.write_text(f"---\n{head}\n---\n{{prompt}} {{response_1}} {{response_2}}")
        return load_template(str(own)).hash

    plain = hash_of("source: ours")
    assert hash_of("source: theirs") == plain
    assert len({plain, hash_of("verdict: 'V:'"), hash_of("verdict: 'V:'\nlabels: [A, B]")}) == 3


def test_what_is_asked_does_not_depend_on_how_it_is_read():
    """So that a paid reply can be read in another way."""
    text = "{prompt} {response_1} {response_2} V: or W:"
    one, other = (Template("own", text, verdict=verdict, answer="") for verdict in ("V:", "W:"))
    assert one.question == other.question != Template("own", text + "!", verdict="V:", answer="").question
    assert one.hash != other.hash


@pytest.mark.parametrize(
    ("shown_first", "shown_second", "status", "preference", "flipped", "first"),
    [
        (1.0, 0.0, "ok", 1.0, False, 0.5),
        (0.0, 1.0, "ok", 0.0, False, 0.5),
        (1.0, 1.0, "tie", 0.5, True, 1.0),
        (0.0, 0.0, "tie", 0.5, True, 0.0),
        (0.9, 0.3, "ok", 0.8, False, 0.5),
        (0.9, 0.6, "tie", 0.5, True, 1.0),
        (0.5, 0.5, "tie", 0.5, False, 0.5),
        (0.5, 0.2, "ok", 0.65, False, 0.25),
    ],
)
def test_two_orders_are_put_together(shown_first, shown_second, status, preference, flipped, first):
    judgement = both_orders("a", shown_first, shown_second)
    assert (judgement.status, judgement.flipped, judgement.first) == (status, flipped, first)
    assert judgement.preference == pytest.approx(preference)


def test_where_one_order_is_asked_each_stands_first_half_of_the_time():
    comparisons = [Comparison(str(i), PROMPT, f"one {i}", f"other {i}") for i in range(400)]
    first = [policy_first(comparison) for comparison in comparisons]
    assert first == [policy_first(comparison) for comparison in comparisons]
    assert 150 < sum(first) < 250


def test_one_order_says_nothing_about_orders():
    judgement = one_order("a", 0.8, policy_is_first=False)
    assert (judgement.status, judgement.flipped, judgement.first) == ("ok", None, None)
    assert judgement.preference == pytest.approx(0.2)
