"""Effective batches are a function of the seed alone."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.prompt import Message
from harness.training.batch import Epochs, Example, effective_batches, sft_batches

PROMPT = (Message("user", "x"),)


def pairs(n: int) -> list[Example]:
    return [Example(PROMPT, 2 * i, 2 * i + 1) for i in range(n)]


@given(
    n=st.integers(1, 60), size=st.integers(1, 20), seed=st.integers(0, 5), data=st.sampled_from(["paired", "unpaired"])
)
def test_an_epoch_uses_every_completion_once_in_batches_of_nearly_equal_size(n, size, seed, data):
    batches = effective_batches(pairs(n), batch_size=size, data=data, seed=seed, epoch=0)
    assert Counter(i for b in batches for i in b.chosen) == Counter(range(0, 2 * n, 2))
    assert Counter(i for b in batches for i in b.rejected) == Counter(range(1, 2 * n, 2))
    sizes = [len(b.chosen) for b in batches]
    assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
    assert len(batches) == -(-n // size)


@given(n=st.integers(1, 40), seed=st.integers(0, 5))
def test_paired_batches_keep_pairs_together(n, seed):
    for batch in effective_batches(pairs(n), batch_size=8, data="paired", seed=seed, epoch=0):
        assert [i + 1 for i in batch.chosen] == batch.rejected
        assert batch.chosen_examples == batch.rejected_examples == [i // 2 for i in batch.chosen]


def test_listwise_batches_are_the_paired_ones_with_the_further_responses():
    others = [tuple(range(100 + 3 * i, 100 + 3 * i + i % 4)) for i in range(20)]
    examples = [Example(PROMPT, 2 * i, 2 * i + 1, (1.0, 0.0, *[0.5] * len(others[i])), others[i]) for i in range(20)]
    paired, listwise = (
        effective_batches(examples, batch_size=8, data=data, seed=0, epoch=0) for data in ("paired", "listwise")
    )
    assert [b.chosen for b in paired] == [b.chosen for b in listwise]
    assert [b.rows[: 2 * len(b.chosen)] for b in listwise] == [b.rows for b in paired]
    for batch in listwise:
        assert batch.others == [others[i] for i in batch.chosen_examples]
        together = [{batch.rows[position] for position in group} for group in batch.groups()]
        assert together == [{2 * i, 2 * i + 1, *others[i]} for i in batch.chosen_examples]
        assert sorted(p for group in batch.groups() for p in group) == list(range(len(batch.rows)))


@pytest.mark.parametrize("data", ["paired", "unpaired", "listwise"])
def test_a_part_of_a_batch_holds_the_rows_of_its_positions_in_their_order(data):
    examples = [Example(PROMPT, 3 * i, 3 * i + 1, (2.0, 0.0, 1.0), (3 * i + 2,)) for i in range(6)]
    (batch,) = effective_batches(examples, batch_size=6, data=data, seed=0, epoch=0)
    positions = [position for group in batch.groups()[1:5:2] for position in group]
    assert batch.part(positions).rows == [batch.rows[position] for position in sorted(positions)]


def test_unpaired_batches_see_the_same_chosen_responses_and_break_the_pairs():
    paired = effective_batches(pairs(64), batch_size=8, data="paired", seed=0, epoch=0)
    unpaired = effective_batches(pairs(64), batch_size=8, data="unpaired", seed=0, epoch=0)
    assert [b.chosen for b in paired] == [b.chosen for b in unpaired]
    together = sum(i + 1 in b.rejected for b in unpaired for i in b.chosen)
    assert together < 24  # by chance 8 of 64 stay together


def test_order_depends_on_seed_and_epoch_and_on_nothing_else():
    def order(seed, epoch):
        return [b.chosen for b in effective_batches(pairs(32), batch_size=8, data="paired", seed=seed, epoch=epoch)]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != order(0, 1)


def test_unpaired_data_puts_both_classes_in_every_batch():
    """30 desirable and 10 undesirable in batches of 4 pairs' worth: 5 batches of 6 and 2."""
    examples = [Example(PROMPT, i, None) for i in range(30)] + [Example(PROMPT, None, i) for i in range(30, 40)]
    batches = effective_batches(examples, batch_size=4, data="unpaired", seed=0, epoch=0)
    assert [(len(b.chosen), len(b.rejected)) for b in batches] == [(6, 2)] * 5


def test_a_rare_class_is_in_every_batch():
    """100 desirable and 3 undesirable: three batches, with one undesirable response each."""
    examples = [Example(PROMPT, i, None) for i in range(100)] + [Example(PROMPT, None, i) for i in range(100, 103)]
    batches = effective_batches(examples, batch_size=8, data="unpaired", seed=0, epoch=0)
    assert [(len(b.chosen), len(b.rejected)) for b in batches] == [(34, 1), (33, 1), (33, 1)]


def test_epochs_are_one_list_of_batches_of_which_each_is_made_when_it_is_asked_for():
    made = []
    epochs = Epochs(3, lambda epoch: made.append(epoch) or [f"{epoch}.{step}" for step in range(2)])
    assert len(epochs) == 6 and made == [0]
    assert epochs[1] == "0.1" and made == [0]
    assert epochs[4] == "2.0" and made == [0, 2]
    assert list(epochs) == ["0.0", "0.1", "1.0", "1.1", "2.0", "2.1"]


def test_sft_batches_cover_the_completions_once():
    batches = sft_batches([3, 5, 7, 9, 11], batch_size=2, seed=0, epoch=0)
    assert sorted(i for b in batches for i in b) == [3, 5, 7, 9, 11]
    assert [len(b) for b in batches] == [2, 2, 1]
