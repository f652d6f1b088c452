"""Effective batches are a function of the seed alone; micro-batches cover them exactly."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from harness.tasks.base import Message
from harness.training.batches import collate, effective_batches, micro_batches, sft_batches
from harness.training.data import Example, Tokens

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


def test_sft_batches_cover_the_completions_once():
    batches = sft_batches([3, 5, 7, 9, 11], batch_size=2, seed=0, epoch=0)
    assert sorted(i for b in batches for i in b) == [3, 5, 7, 9, 11]
    assert [len(b) for b in batches] == [2, 2, 1]


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30), budget=st.integers(1, 200))
def test_micro_batches_cover_each_row_once_within_the_token_budget(lengths, budget):
    passes = micro_batches([[i] for i in range(len(lengths))], lengths, budget)
    assert sorted(i for rows in passes for i in rows) == list(range(len(lengths)))
    for rows in passes:
        assert len(rows) == 1 or len(rows) * max(lengths[i] for i in rows) <= budget


def test_micro_batches_do_not_part_a_pair():
    passes = micro_batches([[0, 4], [1, 5], [2, 6], [3, 7]], [5, 9, 2, 4, 5, 1, 3, 30], 40)
    for pair in ([0, 4], [1, 5], [2, 6], [3, 7]):
        assert any(set(pair) <= set(rows) for rows in passes)


def test_collate_points_at_the_positions_that_predict_the_completion():
    """Row 0: prompt 1 2, completion 3 4: token 3 is predicted at position 1, token 4 at 2. Row 1 starts at 5."""
    batch = collate([Tokens((1, 2), (3, 4)), Tokens((5, 6, 7, 8), (9,))], pad_token=0)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 0], [5, 6, 7, 8, 9]]
    assert batch.targets.tolist() == [3, 4, 9]
    assert batch.position.tolist() == [1, 2, 5 + 3]
    assert batch.row.tolist() == [0, 0, 1]
