"""Needs are objects in a registry; a user's own is one of them."""

import pytest
import torch

from losses import MissingData, PreferenceBatch, RegistryError, get_loss, list_losses, register_loss, register_need
from losses.needs import NEEDS
from losses.probe import probe


def register_weighted(needs=("reference", "weight")):
    @register_loss("weighted", needs=needs)
    def weighted(batch, *, beta: float = 0.1):
        """Weighted."""
        return -batch.chosen.require("weight") * batch.logratio_margin * beta

    return get_loss("weighted")


def test_every_need_says_what_it_is_and_every_loss_declares_registered_ones():
    assert all(NEEDS.get(name).summary for name in NEEDS)
    assert {need for loss in list_losses() for need in get_loss(loss).needs} <= set(NEEDS)


def test_an_unknown_need_is_refused_with_the_nearest():
    with pytest.raises(RegistryError, match=r"loss 'weighted' .*: needs is 'refrence'; did you mean 'reference'\?"):
        register_weighted(needs=["refrence"])


def test_a_need_of_something_unknown_is_refused():
    with pytest.raises(RegistryError, match=r"need 'weight' .*: of is 'token'; known: response, prompt"):
        register_need("weight", of="token")(lambda split: [])


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(RegistryError, match="the need 'scores' is registered twice"):
        register_need("scores")(lambda split: [])


@pytest.mark.parametrize("name", ["tokens", "policy", "mean_logratio", "lengths", "needs", "mask", "chosen", "others"])
def test_a_name_that_a_batch_has_already_is_refused(name):
    with pytest.raises(RegistryError, match=rf"need '{name}' .*: a batch has '{name}' already, .*; choose another"):
        register_need(name)(lambda split: ([], []))
    assert name not in NEEDS


def test_a_loss_reads_a_user_s_own_need():
    register_need("weight")(lambda split: ([], []))
    loss = register_weighted()
    zeros, weights = torch.zeros(2), torch.tensor([1.0, 3.0])
    batch = PreferenceBatch.from_logps(zeros - 1, zeros, zeros, zeros, needs={"weight": (weights, weights)})
    assert loss(batch, beta=0.5).tolist() == [0.5, 1.5]
    with pytest.raises(MissingData, match="this loss needs weight for the chosen side, and the batch has none"):
        loss(PreferenceBatch.from_logps(zeros, zeros, zeros, zeros))


def test_values_of_a_need_belong_to_the_responses():
    with pytest.raises(ValueError, match=r"weight of the chosen side must have 2 rows, got shape \(3,\)"):
        PreferenceBatch.from_logps(*[torch.zeros(2)] * 4, needs={"weight": (torch.ones(3), torch.ones(2))})


ONES = torch.ones(2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (ONES, r"need 'weight': pass a pair of tensors, \(chosen, rejected\)"),
        ((ONES,), "need 'weight': pass a pair of tensors"),
        ((ONES, None), "need 'weight': pass a pair of tensors"),
        ([1.0, 3.0], r"weight of the chosen side must have 2 rows, got shape \(\)"),
        ((torch.ones(()), ONES), r"weight of the chosen side must have 2 rows, got shape \(\)"),
        ((ONES, torch.ones(2, dtype=torch.complex64)), "weight of the rejected side must be real, got complex64"),
    ],
)
def test_values_of_a_need_are_two_tensors(values, message):
    with pytest.raises(ValueError, match=message):
        PreferenceBatch.from_logps(*[torch.zeros(2)] * 4, needs={"weight": values})


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("scores", "chosen_scores and rejected_scores"),
        ("reference", "reference_chosen and reference_rejected"),
        ("tokens", "chosen_tokens and rejected_tokens"),
        ("kl_pairs", "kl_pairs"),
        ("history", "history"),
    ],
)
def test_what_has_arguments_of_its_own_is_not_passed_among_needs(name, instead):
    with pytest.raises(ValueError, match=f"need '{name}': pass it as {instead}, not in needs"):
        PreferenceBatch.from_logps(*[torch.zeros(2)] * 4, needs={name: (ONES, ONES)})


def test_what_a_batch_has_already_is_not_passed_among_needs():
    with pytest.raises(ValueError, match=r"need 'logratio': a batch has 'logratio' already, .*; choose another name"):
        PreferenceBatch.from_logps(*[torch.zeros(2)] * 4, needs={"logratio": (ONES, ONES)})


@pytest.mark.parametrize("of", ["response", "prompt"])
def test_a_loss_is_tried_on_random_values_of_the_need(of):
    register_need("weight", of=of)(lambda split: [])
    batch = probe(register_weighted())
    chosen, rejected = (side.require("weight") for side in (batch.chosen, batch.rejected))
    assert chosen.shape == (6,) and chosen.min() >= 0.5 and chosen.max() <= 1.5
    assert torch.equal(chosen, rejected) == (of == "prompt")
    register_need("vector", of=of, random=lambda side, generator: torch.full((len(side), 2), 7.0))(lambda split: [])
    loss = register_weighted(needs=("reference", "vector"))
    assert probe(loss).chosen.require("vector").tolist() == [[7.0, 7.0]] * 6
