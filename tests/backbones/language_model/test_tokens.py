"""A task's rows as token ids: pairs, single responses and lists, cut to size and counted."""

import pytest

from harness.backbones.language_model.policy import load_tokenizer
from harness.backbones.language_model.tokens import prepare_task
from harness.core.config import ModelConfig, TaskConfig
from harness.core.render import Renderer
from harness.tasks import TASKS, Message, Preference, Question, Scored, TaskData

PROMPT = (Message("user", "Why?"),)
LONG = "word " * 50
LISTED = Preference(PROMPT, "best", "worst", 9.0, 1.0, (Scored("second", 5.0), Scored(LONG, 4.0), Scored("best", 3.0)))


@pytest.fixture(scope="module")
def prepare(tiny_model):
    """Return a function that prepares rows as the train split of a task."""
    renderer = Renderer(load_tokenizer(tiny_model, ModelConfig()))

    def prepared(rows, **config):
        config = TaskConfig(max_prompt_tokens=40, max_completion_tokens=16, **config)
        questions = [Question("q", PROMPT, "Because.")]
        data = TaskData(rows, rows, questions, [], [], "human")
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
