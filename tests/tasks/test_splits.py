"""No prompt is in two splits, every dropped row is counted, and the order of the rows does not matter."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.errors import UserError
from harness.core.prompt import prompt_key
from harness.tasks import Message, Preference, TaskData
from harness.tasks.formats import Dropped, ParsedRow, parse_standard
from harness.tasks.rows import Row
from harness.tasks.splits import read_task, split_rows

WORDS = st.text("abc ", min_size=1, max_size=3)
PROMPTS = st.lists(WORDS, min_size=1, max_size=2).map(
    lambda turns: tuple(Message("assistant" if (len(turns) - i) % 2 == 0 else "user", t) for i, t in enumerate(turns))
)


@st.composite
def records(draw, splits=(None, "train", "dev", "test")):
    prompt = draw(PROMPTS)
    preference = Preference(prompt, draw(WORDS), draw(WORDS)) if draw(st.booleans()) else None
    return ParsedRow(prompt, preference, draw(st.none() | WORDS), draw(st.sampled_from(splits)))


def keys(rows):
    return {prompt_key(row.prompt) for row in rows}


def pair(text, answer="good", split=None):
    prompt = (Message("user", text),)
    return ParsedRow(prompt, Preference(prompt, answer, "bad"), answer, split)


def dropped(counts):
    return sum(count for key, count in counts.items() if key.startswith("rows dropped, "))


@settings(max_examples=150, deadline=None)
@given(st.lists(records(), max_size=30) | st.lists(records(splits=(None,)), max_size=30))
def test_no_prompt_stands_in_two_splits_and_every_row_is_counted_once(rows):
    data = split_rows(rows, labels="x")
    parts = [keys(part) for part in (data.train, data.dev, data.judge_fit, [*data.judge_test, *data.test])]
    for i, part in enumerate(parts):
        assert all(part.isdisjoint(other) for other in parts[i + 1 :])
    counts = data.counts
    placed = sum(counts[f"{split}: rows"] for split in ("train", "dev", "judge_fit", "judge_test"))
    assert placed + counts["test: rows without a label"] + dropped(counts) == len(rows)
    not_asked = counts.get("test: rows without a baseline", 0) + counts.get("test: rows on another's prompt", 0)
    tested = counts["judge_test: rows"] + counts["test: rows without a label"]
    assert counts["test: questions"] + not_asked == tested
    assert len(data.test) == len({q.id for q in data.test}) == len(keys(data.test)) == counts["test: questions"]
    assert keys(data.dev_questions) <= keys(data.dev) and len(data.dev_questions) == counts["dev: questions"]


@settings(max_examples=100, deadline=None)
@given(st.lists(records(), max_size=20), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(rows, rng):
    shuffled = rng.sample(rows, len(rows))
    assert split_rows(shuffled, labels="x") == split_rows(rows, labels="x")


@settings(max_examples=100, deadline=None)
@given(st.lists(records(splits=("train", "dev", "test")), max_size=30))
def test_a_split_of_the_source_s_own_stays_what_it_is(rows):
    splits = {row.split for row in rows}
    data = split_rows(rows, labels="x")
    if splits == {"train", "dev", "test"}:
        test = [row for row in rows if row.split == "test"]
        assert keys(data.test) == keys(row for row in test if row.baseline is not None)
        assert data.counts["judge_test: rows"] == sum(row.preference is not None for row in test)
        assert keys(data.dev) <= keys(row for row in rows if row.split == "dev")
        assert keys(data.train) | keys(data.judge_fit) <= keys(row for row in rows if row.split == "train")


def test_shares_are_those_that_are_documented():
    data = split_rows([pair(f"question {i}") for i in range(4000)], labels="x")
    shares = [len(part) / 4000 for part in (data.train, data.judge_fit, data.dev, data.test, data.judge_test)]
    assert shares == pytest.approx([0.5, 0.25, 0.1, 0.15, 0.15], abs=0.02)


def test_a_source_with_a_test_split_gives_smaller_shares_of_the_rest():
    rows = [pair(f"question {i}", split="test" if i % 5 == 0 else "train") for i in range(5000)]
    data = split_rows(rows, labels="x")
    assert [len(p) / 4000 for p in (data.train, data.judge_fit, data.dev)] == pytest.approx([0.85, 0.1, 0.05], abs=0.02)
    assert len(data.test) == len(data.judge_test) == 1000


def test_training_rows_on_a_test_prompt_are_dropped_and_counted():
    rows = [pair(f"question {i}", split="train") for i in range(100)]
    rows += [pair(f"question  {i} ", answer="other", split="test") for i in range(90, 110)]  # except for white space
    data = split_rows(rows, labels="x")
    assert data.counts["rows dropped, prompt also in test"] == 10
    assert len(data.train) + len(data.dev) + len(data.judge_fit) == 90
    assert {q.baseline for q in data.test} == {"other"} and len(data.test) == 20


def test_train_and_validation_alone_are_train_and_test():
    rows = [pair(f"question {i}", split="dev" if i < 20 else "train") for i in range(120)]
    data = split_rows(rows, labels="x")
    assert keys(data.test) == keys(row for row in rows if row.split == "dev")
    assert data.dev and keys(data.dev).isdisjoint(keys(data.test))


def test_a_single_split_divides_nothing():
    """Otherwise a folder with only test.jsonl would leave nothing to train on."""
    rows = [pair(f"question {i}") for i in range(100)]
    alone = split_rows([pair(f"question {i}", split="test") for i in range(100)], labels="x")
    assert [keys(alone.train), keys(alone.test)] == [
        keys(part) for part in (lambda d: (d.train, d.test))(split_rows(rows, labels="x"))
    ]


def test_one_conversation_broken_off_at_different_turns_goes_together():
    """Otherwise the answer to a test question would be in a training prompt."""
    rows = []
    for i in range(100):
        opening = (Message("user", f"question {i}"),)
        later = (*opening, Message("assistant", "good"), Message("user", "and then?"))
        rows += [pair(f"question {i}"), ParsedRow(later, Preference(later, "so", "no"), "so", None)]
    data = split_rows(rows, labels="x")
    openings = [{row.prompt[0] for row in part} for part in (data.train, data.dev, data.judge_fit, data.test)]
    assert sum(map(len, openings)) == 100
    assert len(data.train) == 2 * len(openings[0])


def test_dialogues_that_all_open_alike_are_still_split():
    rows = []
    for i in range(200):
        prompt = (Message("user", "Let us play."), Message("assistant", "Yes."), Message("user", f"move {i}"))
        rows.append(ParsedRow(prompt, Preference(prompt, "a", "b"), "a", None))
    data = split_rows(rows, labels="x")
    assert min(len(data.train), len(data.dev), len(data.judge_fit), len(data.test)) > 5


def test_rows_without_a_label_are_test_questions_unless_their_prompt_is_trained_on():
    rows = [pair(f"question {i}") for i in range(100)]
    unlabelled = [ParsedRow((Message("user", f"question {i}"),), None, "reference", None) for i in range(50, 150)]
    data = split_rows([*rows, *unlabelled], labels="x")
    trained = keys(data.train) | keys(data.dev) | keys(data.judge_fit)
    assert keys(data.test).isdisjoint(trained)
    assert keys(unlabelled) - trained <= keys(data.test)
    assert dropped(data.counts) == len(keys(unlabelled) & trained) > 0


def test_the_first_rows_of_a_split_are_a_fair_sample_of_its_prompts():
    """With many pairs per prompt, the first few rows must not all be on the same prompt."""
    rows = [pair(f"question {i}", answer=f"good {j}") for i in range(20) for j in range(50)]
    data = split_rows(rows, labels="x")
    assert len(keys(data.train[:50])) > 5


def test_unpaired_rows_are_paired_for_the_judge_within_a_prompt():
    rows = []
    for i in range(200):
        prompt = (Message("user", f"question {i}"),)
        rows.append(ParsedRow(prompt, Preference(prompt, f"good {i}", None), f"good {i}", None))
        rows.append(ParsedRow(prompt, Preference(prompt, None, f"bad {i}"), None, None))
        rows.append(ParsedRow(prompt, Preference(prompt, None, f"worse {i}"), None, None))
    data = split_rows(rows, labels="x")
    assert data.judge_fit and data.judge_test
    for preference in [*data.judge_fit, *data.judge_test]:
        number = preference.prompt[0].content.split()[1]
        assert preference.chosen == f"good {number}" and preference.rejected.split()[1] == number
    assert data.counts["judge_fit: rows"] == 3 * data.counts["judge_fit: pairs"]
    assert not any(preference.paired for preference in data.train)
    assert {q.baseline.split()[0] for q in data.test} == {"good"}


def rows_of(*values):
    return [Row(value, f"d.jsonl:{i}") for i, value in enumerate(values, 1)]


def test_paired_and_unpaired_rows_do_not_mix():
    rows = rows_of({"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "chosen": "b", "rejected": "c"})
    with pytest.raises(UserError, match=r"d\.jsonl:2 is a pair, d\.jsonl:1 is unpaired; put them into two data sets"):
        read_task(rows, parse_standard, source="d.jsonl", labels="x")


def test_rows_of_which_none_can_be_used_are_an_error_with_the_reasons():
    rows = rows_of(*[{"prompt": "a", "chosen": "", "rejected": "c"}] * 3)
    message = r"d.jsonl: no row can be used \(rows read: 3; rows dropped, empty completion: 3\)"
    with pytest.raises(UserError, match=message):
        read_task(rows, parse_standard, source="d.jsonl", labels="x")


def test_too_few_prompts_to_split_are_an_error_that_says_so():
    rows = rows_of(*[{"prompt": "a", "chosen": f"{i}", "rejected": "c"} for i in range(50)])
    message = "d.jsonl: its 1 distinct prompts, split by prompt, leave nothing for .* .rows read: 50.; give more"
    with pytest.raises(UserError, match=message):
        read_task(rows, parse_standard, source="d.jsonl", labels="x")


def test_counts_of_a_reading_add_up():
    def parse(row):
        if row.values["i"] % 7 == 0:
            raise Dropped("of no use")
        return pair(f"question {row.values['i'] % 150}", answer=str(row.values["i"]), split=row.values["split"])

    rows = rows_of(*[{"i": i, "split": random.Random(i).choice(["train"] * 9 + ["test"])} for i in range(900)])
    data = read_task(rows, parse, source="d", labels="someone's")
    counts = data.counts
    assert isinstance(data, TaskData) and data.labels == "someone's"
    assert counts["rows read"] == 900 and counts["rows dropped, of no use"] == 129
    assert counts["rows dropped, prompt also in test"] > 0
    kept = len(data.train) + len(data.dev) + len(data.judge_fit) + len(data.judge_test)
    assert kept + dropped(counts) == 900
