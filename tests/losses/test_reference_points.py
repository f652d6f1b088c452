"""KTO and BCO: values by hand, and where their reference points come from."""

import math

import pytest
import torch

from losses import History, MissingData, PreferenceBatch, Side, get_loss
from tests.losses.by_hand import nll, sigmoid, the_pair


def mismatched(*ratios: float) -> Side:
    """Mismatched pairs with these log-ratios."""
    reference = torch.full((len(ratios),), -20.0)
    return Side(reference + torch.tensor(ratios), reference, name="mismatched")


def test_kto():
    """z = mean of 3 and 1 = 2; beta 0.1.

    Chosen: 2 * (1 - sigma(0.1 * (2 - 2))) = 1; rejected: 1 - sigma(0.1 * (2 + 1)) = 0.425557.
    """
    rows = get_loss("kto")(the_pair(kl_pairs=mismatched(3.0, 1.0)), beta=0.1, desirable_weight=2.0)
    assert rows.tolist() == pytest.approx([1.0, 0.425557], abs=1e-6)


def test_a_kl_estimate_below_zero_counts_as_zero():
    batch = the_pair(kl_pairs=mismatched(-3.0, 1.0))
    torch.testing.assert_close(get_loss("kto")(batch), get_loss("kto_zero")(batch))


def test_kto_without_a_mismatched_pair_is_refused():
    with pytest.raises(ValueError, match="all of the batch answers one prompt"):
        get_loss("kto")(the_pair(kl_pairs=mismatched()))
    with pytest.raises(MissingData, match="needs kl_pairs"):
        get_loss("kto")(the_pair())


def bco_batch(history: History, **fields) -> PreferenceBatch:
    return the_pair(history=history, **fields).with_stopped()


def test_bco():
    """s = 2 and -1 after four responses with mean -1.25: the new mean is (-5 + 1) / 6 = -2/3.

    With beta 0.3: rewards 0.6 and -0.3, less -0.2. -log sigma(0.8) = 0.371101, and -log sigma(0.1) = 0.644397.
    """
    rows = get_loss("bco")(bco_batch(History(-1.25, 4)), beta=0.3)
    assert rows.tolist() == pytest.approx([0.371101, 0.644397], abs=1e-6)


def test_bco_s_first_shift_is_the_mean_of_the_first_batch():
    rows = get_loss("bco")(bco_batch(History()), beta=0.1)
    assert rows.tolist() == pytest.approx([nll(0.2 - 0.05), nll(0.1 + 0.05)], abs=1e-6)


@pytest.mark.parametrize(("ratio", "weight"), [(0.1, 0.5), (3.0, 3.0), (40.0, 10.0)])
def test_bco_udm_weighs_rejected_responses_by_the_clipped_ratio(ratio, weight):
    ratios = {f"{side}_density_ratios": torch.tensor([ratio]) for side in ("chosen", "rejected")}
    plain, weighed = (get_loss(name)(bco_batch(History(1.0, 3), **ratios)) for name in ("bco", "bco_udm"))
    assert weighed.tolist() == pytest.approx([plain[0].item(), weight * plain[1].item()])


def test_no_gradient_passes_through_bco_s_shift():
    """d/ds of -log sigma(beta * s - delta) is -beta * sigma(delta - beta * s): as if delta were a number."""
    batch = bco_batch(History())
    policy = batch.chosen.policy.clone().requires_grad_()
    get_loss("bco")(batch.with_policy(policy, batch.rejected.policy), beta=0.1).sum().backward()
    assert policy.grad.item() == pytest.approx(-0.1 * sigmoid(0.05 - 0.2), abs=1e-7)
    assert math.isfinite(policy.grad.item())
