"""One value of each loss, derived by hand in the docstring; then what theory says of it in special cases.

`the_pair` has l_w = -10, l_l = -11, s_w = 2, s_l = -1, Delta = 3, |y_w| = 4, |y_l| = 2. Often needed:
-log sigma(0.3) = 0.554355, -log sigma(-0.3) = 0.854355, sigma(0.3) = 0.574443. The RPO family is in test_rpo.py.
"""

import math

import pytest
import torch

from losses import PreferenceBatch, RegistryError, get_loss
from tests.losses.by_hand import nll, sigmoid, the_pair

SCORES = {"chosen_scores": torch.tensor([3.0]), "rejected_scores": torch.tensor([1.0])}


def value(name: str, batch: PreferenceBatch | None = None, **settings) -> float:
    return get_loss(name)(the_pair() if batch is None else batch, **settings).item()


def at(delta: float) -> PreferenceBatch:
    """A pair with log-ratios delta and 0."""
    zero = torch.zeros(1, dtype=torch.float64)
    return PreferenceBatch.from_logps(zero + delta, zero, zero, zero)


def test_dpo():
    """beta 0.1: -log sigma(0.3) = log(1 + e^-0.3) = 0.554355."""
    assert value("dpo", beta=0.1) == pytest.approx(0.554355, abs=1e-6)


def test_dpo_norm():
    """s_w/|y_w| = 2/4, s_l/|y_l| = -1/2, difference 1; beta 5: -log sigma(5) = 0.006715."""
    assert value("dpo_norm", beta=5.0) == pytest.approx(0.006715, abs=1e-6)


def test_dpo_nll():
    """DPO's 0.554355 plus alpha = 0.2 times the NLL per token 10/4: 0.554355 + 0.5."""
    assert value("dpo_nll", beta=0.1, alpha=0.2) == pytest.approx(1.054355, abs=1e-6)


def test_cdpo():
    """eps 0.1: 0.9 * 0.554355 + 0.1 * 0.854355 = 0.584355."""
    assert value("cdpo", beta=0.1, label_smoothing=0.1) == pytest.approx(0.584355, abs=1e-6)


def test_robust_dpo():
    """eps 0.1: (0.9 * 0.554355 - 0.1 * 0.854355) / 0.8 = (0.498920 - 0.085436) / 0.8 = 0.516855."""
    assert value("robust_dpo", beta=0.1, label_smoothing=0.1) == pytest.approx(0.516855, abs=1e-6)


def test_ipo():
    """h = 2/4 - -1/2 = 1; tau 0.5: target 1, loss 0. tau 0.1: (1 - 5)^2 = 16."""
    assert value("ipo", tau=0.5) == pytest.approx(0.0, abs=1e-6)
    assert value("ipo", tau=0.1) == pytest.approx(16.0, abs=1e-5)


def test_ipo_sum():
    """Delta = 3; tau 0.1: (3 - 5)^2 = 4."""
    assert value("ipo_sum", tau=0.1) == pytest.approx(4.0, abs=1e-5)


def test_hinge():
    """gamma 0.05: 1 - 0.15 = 0.85; gamma 0.5: 1 - 1.5 is below 0."""
    assert value("hinge", gamma=0.05) == pytest.approx(0.85, abs=1e-6)
    assert value("hinge", gamma=0.5) == 0


def test_slic():
    """delta 2: max(0, 2 + 10 - 11) = 1, less 0.1 * -10: 2. delta 0.5: the hinge is 0 and the NLL is left: 1."""
    assert value("slic", delta=2.0, lam=0.1) == pytest.approx(2.0, abs=1e-6)
    assert value("slic", delta=0.5, lam=0.1) == pytest.approx(1.0, abs=1e-6)


def test_simpo():
    """l_w/4 = -2.5, l_l/2 = -5.5, difference 3; beta 2, ratio 0.5: -log sigma(2 * 2.5) = 0.006715.

    An absolute margin of 0.5 would give 2 * 3 - 0.5 = 5.5 and 0.004079.
    """
    assert value("simpo", beta=2.0, gamma_ratio=0.5) == pytest.approx(0.006715, abs=1e-6)


def test_orpo():
    """p_w = e^-2.5 = 0.082085: log odds -2.5 - log(0.917915) = -2.414350; p_l = e^-5.5: log odds -5.495905.

    -log sigma(3.081555) = 0.044866; with lam 0.1 and the NLL 2.5: 2.504487.
    """
    assert value("orpo", lam=0.1) == pytest.approx(2.504487, abs=1e-6)


def test_cpo():
    """l_w - l_l = 1; beta 0.1: -log sigma(0.1) = 0.644397, plus the NLL per token 2.5."""
    assert value("cpo", beta=0.1, alpha=1.0) == pytest.approx(3.144397, abs=1e-6)


def test_odpo():
    """Scores 3 and 1: log 2 = 0.693147; beta 0.5: -log sigma(1.5 - 0.693147) = log(1 + e^-0.806853) = 0.368981."""
    assert value("odpo", the_pair(**SCORES), beta=0.5, alpha=1.0) == pytest.approx(0.368981, abs=1e-6)


def test_r_dpo():
    """beta 0.1, alpha 0.05: -log sigma(0.3 + 0.05 * (4 - 2)) = -log sigma(0.4) = 0.513015."""
    assert value("r_dpo", beta=0.1, alpha=0.05) == pytest.approx(0.513015, abs=1e-6)


def test_exo():
    """beta 0.1, eps 0.1: 0.574443 * (-0.554355 - log 0.9) + 0.425557 * (-0.854355 - log 0.1).

    = 0.574443 * -0.448994 + 0.425557 * 1.448230 = -0.257922 + 0.616305 = 0.358383.
    """
    assert value("exo", beta=0.1, label_smoothing=0.1) == pytest.approx(0.358383, abs=2e-6)


def test_nca():
    """beta 0.1: r_w = 0.2, r_l = -0.1: 0.598139 + 0.798139 / 2 + 0.644397 / 2 = 1.319407."""
    assert value("nca", beta=0.1) == pytest.approx(1.319407, abs=1e-6)


def test_aot():
    """l_w - l_l = (4, 1), reference (-2, 3): sorted (1, 4) against (-2, 3): 3 and 1, where the pairs have 6 and -2.

    beta 0.1: -log sigma(0.3) = 0.554355 and -log sigma(0.1) = 0.644397.
    """
    batch = PreferenceBatch.from_logps(
        torch.tensor([-6.0, -9.0]), torch.tensor([-10.0, -10.0]), torch.tensor([-12.0, -7.0]), torch.tensor([-10.0] * 2)
    )
    assert get_loss("aot")(batch, beta=0.1).tolist() == pytest.approx([0.554355, 0.644397], abs=1e-6)


def test_aot_unpaired():
    """s_w = (2, 0) sorted (0, 2), s_l = (1, -1) sorted (-1, 1): both ranks differ by 1; -log sigma(0.1) = 0.644397."""
    batch = PreferenceBatch.from_logps(
        torch.tensor([2.0, 0.0]), torch.tensor([1.0, -1.0]), torch.zeros(2), torch.zeros(2)
    )
    assert get_loss("aot_unpaired")(batch, beta=0.1).tolist() == pytest.approx([0.644397] * 2, abs=1e-6)


def test_aot_unpaired_on_classes_of_other_sizes():
    """s_w = (0, 2) stands at the four levels as (0, 0, 2, 2) against s_l = (-1, 0, 1, 3): 1, 0, 1, -1."""
    batch = PreferenceBatch.from_logps(
        torch.tensor([2.0, 0.0]), torch.tensor([3.0, -1.0, 1.0, 0.0]), torch.zeros(2), torch.zeros(4)
    )
    expected = [nll(0.1 * x) for x in (1, 0, 1, -1)]
    assert get_loss("aot_unpaired")(batch, beta=0.1).tolist() == pytest.approx(expected, abs=1e-6)


def test_aot_unpaired_integrates_over_the_quantiles_of_both_classes():
    """s_w = 0, 3 over halves, s_l = -1, 1, 2 over thirds; over sixths (0, 0, 0, 3, 3, 3) and (-1, -1, 1, 1, 2, 2)."""
    batch = PreferenceBatch.from_logps(
        torch.tensor([3.0, 0.0]), torch.tensor([2.0, -1.0, 1.0]), torch.zeros(2), torch.zeros(3)
    )
    expected = [nll(0.1 * x) for x in (1, 1, -1, 2, 1, 1)]
    assert get_loss("aot_unpaired")(batch, beta=0.1).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("rejected", [2, 3, 4])
def test_at_the_start_aot_unpaired_pulls_all_responses_of_a_class_alike(rejected):
    """Which of them is on which rank is then up to rounding."""
    noise = [1e-6 * torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (3, rejected)]
    policies = [part.requires_grad_() for part in noise]
    view = PreferenceBatch.from_logps(*policies, torch.zeros(3), torch.zeros(rejected))
    get_loss("aot_unpaired")(view, beta=0.1).mean().backward()
    for policy, sign in zip(policies, (-1, 1), strict=True):
        assert policy.grad.tolist() == pytest.approx([sign * 0.05 / len(policy)] * len(policy), rel=1e-5)


def test_sppo():
    """beta 0.1: targets +-5: (2 - 5)^2 + (-1 + 5)^2 = 9 + 16 = 25."""
    assert value("sppo", beta=0.1) == pytest.approx(25.0, abs=1e-4)


def test_kto_zero():
    """beta 0.1: 1 - sigma(0.2) = 0.450166, times 2; 1 - sigma(0.1) = 0.475021."""
    rows = get_loss("kto_zero")(the_pair(), beta=0.1, desirable_weight=2.0, undesirable_weight=1.0)
    assert rows.tolist() == pytest.approx([0.900332, 0.475021], abs=1e-6)


def test_apo_zero():
    """beta 0.1: 1 - sigma(0.2) + sigma(-0.1) = 0.450166 + 0.475021 = 0.925187."""
    assert value("apo_zero", beta=0.1) == pytest.approx(0.925187, abs=1e-6)


def test_apo_down():
    """beta 0.1: sigma(0.2) + 1 - sigma(0.3) = 0.549834 + 0.425557 = 0.975391."""
    assert value("apo_down", beta=0.1) == pytest.approx(0.975391, abs=1e-6)


def test_apo_zero_unpaired():
    """beta 0.1: 1 - sigma(0.2) = 0.450166 and sigma(-0.1) = 0.475021: the two halves of apo_zero."""
    rows = get_loss("apo_zero_unpaired")(the_pair(), beta=0.1)
    assert rows.tolist() == pytest.approx([0.450166, 0.475021], abs=1e-6)


def test_discopop():
    """beta 0.05: rho = 0.15, g = sigma(3) = 0.952574: 0.047426 * 0.620957 + 0.952574 * 0.860708 = 0.849338."""
    assert value("discopop", beta=0.05, tau=0.05) == pytest.approx(0.849338, abs=2e-6)


SECOND = {"chosen_second_reference": torch.tensor([-11.0]), "rejected_second_reference": torch.tensor([-12.0])}


def test_mrpo():
    """References -12, -10 and -11, -12: gaps 2 and 1, a = 1/3. eta 0.1, shares 23/45 and 22/45: the second one's
    log-probs are clipped to -12 * (1 - 0.051111) = -11.386667 and -10 * (1 + 0.048889) = -10.488889.

    m_w = -log(e^12 / 3 + 2 e^11.386667 / 3) = -11.635238, m_l = -log(e^10 / 3 + 2 e^10.488889 / 3) = -10.350894;
    beta 0.1: -log sigma(0.1 * (1.635238 + 0.649106)) = log(1 + e^-0.228434) = 0.585438.
    """
    assert value("mrpo", the_pair(**SECOND), beta=0.1, eta=0.1) == pytest.approx(0.585438, abs=2e-6)


AUGMENTED = {"chosen_augmented": torch.tensor([-9.0]), "rejected_augmented": torch.tensor([-13.0])}


def test_sr_dpo():
    """Delta_pi = -9 + 13 = 4; beta 0.1, lam 0.05: -log sigma(0.3 - 0.2) = 0.644397."""
    assert value("sr_dpo", the_pair(**AUGMENTED), beta=0.1, lam=0.05) == pytest.approx(0.644397, abs=1e-6)


def test_sr_ipo():
    """Delta = 3, Delta_pi = 4; tau 0.1, lam 0.5: (3 - 2 - 5)^2 = 16."""
    assert value("sr_ipo", the_pair(**AUGMENTED), tau=0.1, lam=0.5) == pytest.approx(16.0, abs=1e-5)


def test_without_its_refinement_sr_is_the_loss_that_it_refines():
    batch = the_pair(**AUGMENTED)
    assert value("sr_dpo", batch, beta=0.1, lam=0.0) == pytest.approx(value("dpo", batch, beta=0.1))
    assert value("sr_ipo", batch, tau=0.1, lam=0.0) == pytest.approx(value("ipo_sum", batch, tau=0.1))


def test_mrpo_with_one_reference_twice_is_dpo():
    batch = the_pair(chosen_second_reference=torch.tensor([-12.0]), rejected_second_reference=torch.tensor([-10.0]))
    assert value("mrpo", batch, beta=0.1) == pytest.approx(value("dpo", batch, beta=0.1), abs=1e-6)


def test_mrpo_s_mixture_is_harmonic():
    from losses.mrpo import mixture

    for p, q, a in ((0.5, 0.1, 0.3), (0.01, 0.9, 0.99), (0.2, 0.2, 0.0), (0.2, 0.7, 1.0)):
        first, second, weight = (torch.tensor([x], dtype=torch.float64) for x in (math.log(p), math.log(q), a))
        assert mixture(first, second, weight).item() == pytest.approx(-math.log(a / p + (1 - a) / q))


def test_rpo_reward_sq():
    """beta 0.1: h = 0.3; eta 1: d = 3 - 1 = 2; (0.3 - 2)^2 = 2.89."""
    assert value("rpo_reward_sq", the_pair(**SCORES), beta=0.1, eta=1.0) == pytest.approx(2.89, abs=1e-5)


def test_rpo_reward_fwd_kl():
    """h = 0.3, d = 2: 0.574443 * (-0.554355 + 0.126928) + 0.425557 * (-0.854355 + 2.126928) = 0.296020."""
    assert value("rpo_reward_fwd_kl", the_pair(**SCORES), beta=0.1, eta=1.0) == pytest.approx(0.296020, abs=2e-6)


def test_rpo_reward_bwd_kl():
    """h = 0.3, d = 2: 0.880797 * (-0.126928 + 0.554355) + 0.119203 * (-2.126928 + 0.854355) = 0.224782."""
    assert value("rpo_reward_bwd_kl", the_pair(**SCORES), beta=0.1, eta=1.0) == pytest.approx(0.224782, abs=2e-6)


@pytest.mark.parametrize(
    ("name", "settings"), [("cdpo", {"label_smoothing": 0.0}), ("robust_dpo", {"label_smoothing": 0.0}),
                           ("odpo", {"alpha": 0.0}), ("r_dpo", {"alpha": 0.0}), ("dpo_nll", {"alpha": 0.0})],
)  # fmt: skip
def test_without_its_addition_a_descendant_of_dpo_is_dpo(name, settings):
    batch = the_pair(**SCORES)
    assert value(name, batch, beta=0.1, **settings) == pytest.approx(value("dpo", batch, beta=0.1), abs=1e-6)


@pytest.mark.parametrize("delta", [-30.0, -1.0, 0.0, 4.0, 50.0])
def test_robust_dpo_is_dpo_in_expectation_over_flipped_labels(delta):
    robust = {sign: value("robust_dpo", at(sign * delta), beta=0.1, label_smoothing=0.2) for sign in (1, -1)}
    assert 0.8 * robust[1] + 0.2 * robust[-1] == pytest.approx(value("dpo", at(delta), beta=0.1))


def test_a_longer_chosen_response_needs_less_margin_in_r_dpo():
    """The regulariser lowers the reward of length, so a long winner that is only as likely must count as enough."""
    batch = the_pair()
    longer = PreferenceBatch.from_logps(
        batch.chosen.policy, batch.rejected.policy, batch.chosen.reference, batch.rejected.reference,
        chosen_tokens=batch.chosen.tokens + 10, rejected_tokens=batch.rejected.tokens,
    )  # fmt: skip
    policy = batch.chosen.policy.clone().requires_grad_()
    pulls = []
    for view in (batch, longer):
        get_loss("r_dpo")(view.with_policy(policy, view.rejected.policy)).sum().backward()
        pulls.append(-policy.grad.item())
        policy.grad = None
    assert 0 < pulls[1] < pulls[0]


def test_a_certain_response_leaves_orpo_finite_and_its_gradient_bounded():
    """log(1 - p) is -inf at p = 1: where every token is certain, on either side or on both."""
    for chosen, rejected in ((0.0, -3.0), (-3.0, 0.0), (0.0, 0.0), (-1e-12, -1e-12), (-1e-7, -1e5)):
        policy = torch.tensor([chosen, rejected], requires_grad=True)
        batch = PreferenceBatch.from_logps(
            policy[:1], policy[1:], chosen_tokens=torch.tensor([1]), rejected_tokens=torch.tensor([1])
        )
        rows = get_loss("orpo")(batch)
        rows.sum().backward()
        assert rows.isfinite().all() and policy.grad.isfinite().all(), (chosen, rejected)


def test_the_log_odds_agree_with_arithmetic_in_both_branches():
    from losses.numerics import log_odds

    for x in (-1e-6, -0.1, -0.7, -2.0, -30.0):
        expected = x - math.log(-math.expm1(x))
        assert log_odds(torch.tensor([x], dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-12)


def test_odpo_refuses_a_pair_whose_scores_are_not_in_order():
    with pytest.raises(ValueError, match="1 of 1 pairs do not have it above 0"):
        value("odpo", the_pair(chosen_scores=torch.tensor([1.0]), rejected_scores=torch.tensor([1.0])))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("cdpo", {"label_smoothing": 0.5}, "label_smoothing must be a float at least 0 and below 0.5"),
        ("robust_dpo", {"label_smoothing": 0.5}, "label_smoothing must be a float at least 0 and below 0.5"),
        ("exo", {"label_smoothing": 0.0}, "label_smoothing must be a float above 0 and below 0.5"),
        ("discopop", {"tau": 1.0}, "tau must be a float above 0 and below 1"),
        ("rpo_diagonal", {"diagonal_weight": 1.5}, "diagonal_weight must be a float at least 0 and at most 1"),
        ("simpo+label_smoothing", {"label_smoothing": 0.7}, "label_smoothing must be a float at least 0 and below 0.5"),
    ],
)
def test_a_hyperparameter_out_of_its_bounds_is_refused(name, settings, message):
    with pytest.raises(RegistryError, match=message):
        value(name, **settings)


def test_discopop_has_its_local_minimum_and_maximum_where_the_paper_s_figure_does():
    rho = torch.linspace(-0.5, 0.5, 1001, dtype=torch.float64)
    zero = torch.zeros_like(rho)
    rows = get_loss("discopop")(PreferenceBatch.from_logps(rho / 0.05, zero, zero, zero), beta=0.05, tau=0.05)
    turns = [round(rho[i].item(), 2) for i in range(1, 1000) if (rows[i] - rows[i - 1]) * (rows[i + 1] - rows[i]) < 0]
    assert turns == pytest.approx([-0.12, 0.07], abs=0.01)


def test_apo_zero_unpaired_is_kto_zero_at_equal_weights_and_half_of_apo_zero():
    batch = the_pair()
    torch.testing.assert_close(get_loss("apo_zero_unpaired")(batch), get_loss("kto_zero")(batch))
    assert get_loss("apo_zero_unpaired")(batch).sum().item() == pytest.approx(value("apo_zero"))


@pytest.mark.parametrize("name", ["rpo_reward_sq", "rpo_reward_fwd_kl", "rpo_reward_bwd_kl"])
def test_reward_aware_losses_vanish_where_the_margin_is_the_scores_difference(name):
    """beta * Delta = 0.3 and eta * (r_w - r_l) = 0.15 * 2."""
    assert value(name, the_pair(**SCORES), beta=0.1, eta=0.15) == pytest.approx(0.0, abs=1e-6)


def test_the_kl_of_reward_aware_po_agrees_with_its_definition():
    p, q = sigmoid(0.3), sigmoid(2.0)
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert value("rpo_reward_fwd_kl", the_pair(**SCORES), beta=0.1) == pytest.approx(expected, abs=1e-6)


def test_a_distribution_that_dominates_satisfies_aot_whatever_the_pairing():
    """The same sorted margins, hence the same value, however chosen and reference margins are matched to pairs."""
    policy, reference = torch.tensor([1.0, 4.0, 2.0]), torch.tensor([3.0, -2.0, 0.0])
    zero = torch.zeros(3)
    one, other = (PreferenceBatch.from_logps(policy, zero, r, zero) for r in (reference, reference.flip(0)))
    torch.testing.assert_close(get_loss("aot")(one), get_loss("aot")(other))


def test_aot_unpaired_without_one_class_is_an_error():
    empty = torch.zeros(0)
    with pytest.raises(ValueError, match="one of the two classes is absent"):
        get_loss("aot_unpaired")(PreferenceBatch.from_logps(torch.zeros(2), empty, torch.zeros(2), empty))
