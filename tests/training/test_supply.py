"""What losses get besides log-probs: mismatched pairs, the running mean of log-ratios, density ratios."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.backbones.language_model.scoring import BatchSource
from harness.backbones.language_model.tokens import Tokens
from harness.core.errors import UserError
from harness.core.prompt import Message
from harness.training.batch import Example, effective_batches
from harness.training.needs.density import density_ratios
from harness.training.supply import supplier_of
from losses import get_loss, register_loss, register_need


def prompt(name) -> tuple[Message, ...]:
    return (Message("user", str(name)),)


def unpaired_batch(prompts: list[int], seed: int = 0):
    """Return one batch of pairs on these prompts. The sequences of pair i are 2 i and 2 i + 1."""
    examples = [Example(prompt(name), 2 * i, 2 * i + 1) for i, name in enumerate(prompts)]
    (batch,) = effective_batches(examples, batch_size=len(prompts), data="unpaired", seed=seed, epoch=0)
    return batch


@given(prompts=st.lists(st.integers(0, 6), min_size=1, max_size=20), seed=st.integers(0, 3))
def test_no_prompt_is_matched_with_a_response_to_itself(prompts, seed):
    pairs = unpaired_batch(prompts, seed).mismatched()
    assert all(prompts[a // 2] != prompts[b // 2] for a, b in pairs)
    for side in zip(*pairs, strict=True):
        assert max(Counter(side).values()) == 1, "each prompt and each completion at most once"
    if 2 * max(Counter(prompts).values()) <= len(prompts):
        assert len(pairs) == 2 * len(prompts), "a derangement of the whole batch"


def test_the_derangement_is_a_function_of_the_seed_and_the_batch():
    prompts = list(range(12))
    assert unpaired_batch(prompts, 1).mismatched() == unpaired_batch(prompts, 1).mismatched()
    assert unpaired_batch(prompts, 1).mismatched() != unpaired_batch(prompts, 2).mismatched()


def test_a_batch_on_one_prompt_has_no_mismatched_pairs():
    assert unpaired_batch([3, 3]).mismatched() == []


def test_the_policy_scores_mismatched_pairs_as_it_is_and_the_reference_once(bench):
    """Each step takes at most one more forward pass, without gradient. The numbers equal those computed by hand."""
    scored, score = [], bench.under_start
    bench.under_start = lambda source: scored.append(source.sequences) or score(source)
    objective, batch = bench.objective("kto", budget=60), bench.batch("kto")
    expected = [Tokens(bench.sequences[i].prompt, bench.sequences[j].completion) for i, j in batch.mismatched()]
    assert [set(sequences) for sequences in scored[1:]] == [set(expected)]
    kl_pairs = objective._computed(batch)["kl_pairs"]
    assert len(kl_pairs) == 16 and not kl_pairs.policy.requires_grad
    own = score(BatchSource(expected, pad_token=2, budget=10**6)).sums(range(16))
    torch.testing.assert_close(kl_pairs.reference, own)
    objective.training.policy = bench.start
    torch.testing.assert_close(objective._computed(batch)["kl_pairs"].policy, own, atol=1e-4, rtol=1e-5)
    objective.backward(batch)
    assert objective.sequences_forwarded == 2 * 16


def test_the_running_mean_is_that_of_all_log_ratios_so_far(bench):
    batches = effective_batches(bench.examples, batch_size=3, data="unpaired", seed=0, epoch=0)
    objective, seen = bench.objective("bco", budget=60), []
    for batch in batches:
        history = objective._computed(batch)["history"]
        mean, count = history.mean, history.count
        assert count == len(seen) and mean == pytest.approx(np.mean(seen) if seen else 0.0, abs=1e-6)
        objective.backward(batch)
        logps = objective._all_outputs(batch)
        seen += (logps - objective.supply.reference.sums(batch.rows)).tolist()
    assert objective.training.kept["history"] == [pytest.approx(np.mean(seen), abs=1e-5), 16]


def test_the_shift_of_bco_holds_what_came_before(bench):
    batch = bench.batch("bco")
    objective = bench.objective("bco")
    first = objective.backward(batch)["loss"]
    objective.training.kept["history"] = [50.0, 100]
    assert objective.backward(batch)["loss"] != pytest.approx(first, rel=1e-3)
    assert get_loss("bco").start({"beta": 0.1}) == pytest.approx(0.693147, abs=1e-6)


def test_density_ratios_are_high_where_chosen_prompts_are_dense():
    """Of two clusters, nine tenths of the chosen are at +1 and nine tenths of the rejected at -1."""
    rng = np.random.default_rng(0)
    side = np.where(np.arange(200) % 10 == 0, -1.0, 1.0) * np.repeat([1.0, -1.0], 100)
    embeddings = (side[:, None] * np.ones(3) + 0.1 * rng.normal(size=(200, 3))).astype(np.float32)
    examples = [Example(prompt(i), i, None) if i < 100 else Example(prompt(i), None, i) for i in range(200)]
    ratios = density_ratios(embeddings, examples, np.array([[1.0, 1, 1], [-1, -1, -1]], dtype=np.float32))
    assert ratios == pytest.approx([9.0, 1 / 9], rel=0.2)


def test_on_pairs_every_density_ratio_is_one():
    embeddings = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    examples = [Example(prompt(i), 2 * i, 2 * i + 1) for i in range(30)]
    assert density_ratios(embeddings, examples, embeddings) == pytest.approx(np.ones(30), abs=1e-5)


def weighted(bench, function, of="response"):
    """Return the objective of a loss that reads a need. `function` computes the need."""
    register_need("weight", of=of)(function)

    @register_loss("weighted", needs=["reference", "weight"])
    def reads_weight(batch):
        """Weighted."""
        return -batch.chosen.require("weight") * batch.logratio_margin - batch.rejected.require("weight")

    return bench.objective("weighted")


def test_a_need_of_the_user_s_own_is_given_by_example(bench):
    def of_scores(split):
        return [e.scores[0] for e in split.examples], [e.scores[1] for e in split.examples]

    objective, batch = weighted(bench, of_scores), bench.batch("dpo")
    view = objective.supply.preference_batch(batch, torch.zeros(len(batch.rows)))
    assert view.chosen.require("weight").tolist() == [bench.examples[i].scores[0] for i in batch.chosen_examples]
    assert view.rejected.require("weight").tolist() == [bench.examples[i].scores[1] for i in batch.rejected_examples]
    assert objective.backward(batch)["loss"] == pytest.approx(
        (-view.chosen.require("weight") * margin(objective, batch)).mean().item() - 1.0, rel=1e-4
    )


def margin(objective, batch):
    with torch.no_grad():
        ratios = objective._all_outputs(batch) - objective.supply.reference.sums(batch.rows)
    return ratios[: len(batch.chosen)] - ratios[len(batch.chosen) :]


def test_a_need_of_prompts_is_one_array_for_both_sides(bench):
    objective, batch = weighted(bench, lambda split: np.arange(8), of="prompt"), bench.batch("dpo")
    view = objective.supply.preference_batch(batch, torch.zeros(len(batch.rows)))
    assert view.chosen.require("weight").tolist() == view.rejected.require("weight").tolist() == batch.chosen_examples


ONES = np.ones(8)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (([1.0] * 3, [1.0] * 3), r"need 'weight': 8 examples, and its function returned shape \(3,\)"),
        (3.0, "need 'weight': its function must return two arrays"),
        (([["a"]], [["b"]]), "need 'weight': its function must return two arrays"),
        (([1.0] * 8, [1.0] * 7 + [float("nan")]), "need 'weight': its function returned nan .* rejected .* example 7"),
        (([1.0] * 2 + [[1.0, np.inf]] * 6, ONES), "need 'weight': its function must return two arrays"),
        (([[1.0, np.inf]] * 8, ONES), "need 'weight': its function returned inf .* chosen .* example 0"),
        ((torch.full((8,), 1e300, dtype=torch.float64), ONES), "need 'weight': its function returned inf .* fp32"),
        ((torch.ones(8, requires_grad=True), ONES), "need 'weight': .* requires grad; a need is data: return .*detach"),
        (([torch.ones((), requires_grad=True)] * 8, ONES), "need 'weight': .* requires grad; a need is data"),
        (([torch.ones(1), torch.ones(2)], ONES), "need 'weight': its function must return two arrays"),
        ((torch.ones(8, dtype=torch.complex64), ONES), "need 'weight': .*complex numbers"),
        ((np.ones(8, dtype=complex), ONES), "need 'weight': .*complex numbers"),
    ],
)
def test_a_need_that_does_not_fit_the_data_is_refused(bench, returned, message):
    with pytest.raises(UserError, match=message):
        weighted(bench, lambda split: returned)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_a_need_may_be_a_tensor_of_any_real_dtype(bench, dtype):
    values = torch.arange(8).to(dtype)
    objective, batch = weighted(bench, lambda split: (values, list(values))), bench.batch("dpo")
    view = objective.supply.preference_batch(batch, torch.zeros(len(batch.rows)))
    assert view.chosen.require("weight").tolist() == view.rejected.require("weight").tolist() == batch.chosen_examples
    assert view.chosen.require("weight").dtype == torch.float32


def test_where_a_side_has_no_response_a_need_may_hold_anything():
    examples = [Example(prompt(0), 0, None), Example(prompt(1), None, 1)]
    register_need("weight")(lambda split: ([1.0, np.nan], [None, 2.0]))
    column = supplier_of("weight", {}).compute(SimpleNamespace(examples=examples), [])
    assert (column.chosen[0], column.rejected[1]) == (1.0, 2.0)


def test_an_error_in_the_function_of_a_need_names_the_need_and_the_line(bench):
    def fails(split):
        raise KeyError("no\nlength")

    line = fails.__code__.co_firstlineno + 1
    with pytest.raises(UserError, match=rf"^need 'weight': KeyError: 'no.*length' \(.*test_supply\.py:{line}\)$"):
        weighted(bench, fails)
