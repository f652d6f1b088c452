"""Micro-batches cover a batch exactly, within the token budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.backbones.language_model.policy import load_tokenizer
from harness.backbones.language_model.rows import collate, layout, micro_batches
from harness.backbones.language_model.tokens import Tokens, prepare_task
from harness.core.config import ModelConfig, TaskConfig, TrainConfig
from harness.core.render import Renderer
from harness.tasks import TASKS
from harness.training.batch import effective_batches

PROMPTS = [tuple(range(100 * n, 100 * n + size)) for n, size in enumerate((1, 3, 30, 31, 60), start=1)]
sequences_of_few_prompts = st.lists(
    st.builds(Tokens, st.sampled_from(PROMPTS), st.integers(1, 50).map(lambda size: tuple(range(size)))),
    min_size=1,
    max_size=30,
)


@given(sequences=sequences_of_few_prompts, budget=st.integers(1, 400), shared=st.booleans())
def test_micro_batches_hold_each_sequence_once_within_the_token_budget(sequences, budget, shared):
    passes = micro_batches([[i] for i in range(len(sequences))], sequences, budget, shared=shared)
    assert sorted(i for part in passes for i in part) == list(range(len(sequences)))
    for part in passes:
        padded = collate([sequences[i] for i in part], pad_token=0, shared=shared).input_ids.numel()
        assert len(part) == 1 or padded <= budget


@pytest.mark.parametrize("shared", [False, True])
def test_micro_batches_do_not_part_a_pair(shared):
    prompts, sizes = [(1,), (2,) * 3, (3,), (4,)], [(4, 4), (6, 1), (1, 2), (3, 29)]
    chosen, rejected = ([Tokens(p, (0,) * s[k]) for p, s in zip(prompts, sizes, strict=True)] for k in (0, 1))
    passes = micro_batches([[0, 4], [1, 5], [2, 6], [3, 7]], chosen + rejected, 40, shared=shared)
    for pair in ([0, 4], [1, 5], [2, 6], [3, 7]):
        assert any(set(pair) <= set(part) for part in passes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hh", "tldr"])
@pytest.mark.parametrize("batch_size", [16, 64])
def test_less_than_a_tenth_of_real_data_is_padding(tiny_model, name, batch_size):
    task, config = TASKS.get(name), TaskConfig(train_pairs=256, dev_pairs=8)
    renderer = Renderer(load_tokenizer(tiny_model, ModelConfig()))
    split = prepare_task(name, task, task.load(config), config, renderer).splits["train"]
    tokens = padded = 0
    for batch in effective_batches(split.examples, batch_size=batch_size, data="paired", seed=0, epoch=0):
        sequences, n = [split.sequences[i] for i in batch.chosen + batch.rejected], len(batch.chosen)
        for part in micro_batches(
            [[i, n + i] for i in range(n)], sequences, TrainConfig.micro_batch_tokens, shared=True
        ):
            together = [sequences[i] for i in part]
            padded += collate(together, pad_token=0, shared=True).input_ids.numel()
            places = layout(together, shared=True)
            tokens += sum(
                {row: start + len(s.completion) for (row, start), s in zip(places, together, strict=True)}.values()
            )
    assert 0.9 * padded < tokens <= padded


def test_collate_points_at_the_positions_that_predict_the_completion():
    """Row 0: prompt 1 2, completion 3 4: token 3 is predicted at position 1, token 4 at 2. Row 1 starts at 5."""
    batch = collate([Tokens((1, 2), (3, 4)), Tokens((5, 6, 7, 8), (9,))], pad_token=0)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 0], [5, 6, 7, 8, 9]]
    assert batch.targets.tolist() == [3, 4, 9]
    assert batch.position.tolist() == [1, 2, 5 + 3]
    assert batch.sequence.tolist() == [0, 0, 1]
    assert batch.inputs() == {}


def test_completions_of_one_prompt_share_its_row_and_its_last_position():
    """[1 2 | 3 4 | 5]: tokens 3 and 5 are both predicted at position 1; 5 stands at position 2, as if it came first."""
    batch = collate([Tokens((1, 2), (3, 4)), Tokens((1, 2), (5,)), Tokens((6,), (7,))], pad_token=0, shared=True)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]]
    assert batch.targets.tolist() == [3, 4, 5, 7]
    assert batch.position.tolist() == [1, 2, 1, 5]
    assert batch.read.tolist() == [1, 2, 5]
    assert batch.sequence.tolist() == [0, 0, 1, 2]
    inputs = batch.inputs()
    assert inputs["position_ids"].tolist()[0] == [0, 1, 2, 3, 2]
    no = float("-inf")
    assert inputs["attention_mask"][0, 0].tolist() == [
        [0, no, no, no, no],
        [0, 0, no, no, no],
        [0, 0, 0, no, no],
        [0, 0, 0, 0, no],
        [0, 0, no, no, 0],
    ]


def test_a_row_is_not_prolonged_where_attention_would_cost_more_than_the_prompt():
    """1,024 x 2 prompt tokens: a completion of 100 tokens goes after 2, and not after 102 tokens."""
    completions = [Tokens((1, 2), (3,) * 100) for _ in range(3)]
    assert layout(completions[:1], shared=True) == [(0, 2)]
    assert layout(completions, shared=True) == [(0, 2), (1, 2), (2, 2)]
    assert layout([Tokens((1, 2), (3,) * 20)] * 3, shared=True) == [(0, 2), (0, 22), (0, 42)]
