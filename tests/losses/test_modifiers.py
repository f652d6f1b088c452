"""Modifiers: values by hand, what they leave as it was, and which combinations are refused.

`the_pair` has s_w = 2, s_l = -1, Delta = 3, l_w = -10 in 4 tokens; beta is 0.1.
"""

import sys

import pytest
import torch

from harness.conformance.outcomes import FAILED
from harness.conformance.suite import check_loss
from losses import RegistryError, get_loss, register_loss, register_modifier
from losses.modifiers import MODIFIERS, fitting
from losses.numerics import exp
from losses.spec import LOSSES
from tests.losses.by_hand import nll, the_pair


def value(name: str, **settings) -> float:
    return get_loss(name)(the_pair(), **settings).item()


def test_forward_kl():
    """(1 - e^-2) - (1 - e^1) = 2.718282 - 0.135335 = 2.582947; -log sigma(0.2582947) = 0.572317."""
    assert value("dpo+forward_kl", beta=0.1) == pytest.approx(0.572317, abs=2e-6)


def test_js():
    """log 2 sigma(2) - log 2 sigma(-1) = -0.126928 + 1.313262 = 1.186334; -log sigma(0.1186334) = 0.635589."""
    assert value("dpo+js", beta=0.1) == pytest.approx(0.635589, abs=2e-6)


def test_alpha_divergence():
    """a = 0.5: -2 (e^-1 - 1) = 1.264241 and -2 (e^0.5 - 1) = -1.297443: 2.561684; -log sigma(0.2561684) = 0.573243."""
    assert value("dpo+alpha_divergence", beta=0.1, divergence_alpha=0.5) == pytest.approx(0.573243, abs=2e-6)


def test_label_smoothing_of_hinge():
    """gamma 0.05, eps 0.1: 0.9 * (1 - 0.15) + 0.1 * (1 + 0.15) = 0.88."""
    assert value("hinge+label_smoothing", gamma=0.05, label_smoothing=0.1) == pytest.approx(0.88, abs=1e-6)


def test_label_smoothing_of_simpo_reverses_its_margin_too():
    """3 - 0.5 = 2.5, beta 2: 0.9 * -log sigma(5) + 0.1 * -log sigma(-5) = 0.9 * 0.006715 + 0.1 * 5.006715 = 0.506715.

    Responses that change places would keep the margin: -log sigma(2 * (-3 - 0.5)) = 7.000912.
    """
    smoothed = value("simpo+label_smoothing", beta=2.0, gamma_ratio=0.5, label_smoothing=0.1)
    assert smoothed == pytest.approx(0.506715, abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "settings", "kept", "turned"),
    [
        ("cpo", {"beta": 0.1, "alpha": 1.0}, nll(0.1) + 2.5, nll(-0.1) + 2.5),
        ("dpo_nll", {"beta": 0.1, "alpha": 0.2}, nll(0.3) + 0.5, nll(-0.3) + 0.5),
        ("dpo+nll", {"beta": 0.1, "nll_weight": 0.2}, nll(0.3) + 0.5, nll(-0.3) + 0.5),
        ("orpo", {"lam": 0.1}, 2.5 + 0.1 * nll(3.081555), 2.5 + 0.1 * nll(-3.081555)),
        ("slic", {"delta": 2.0, "lam": 0.1}, 1.0 + 1.0, 3.0 + 1.0),
        ("r_dpo", {"beta": 0.1, "alpha": 0.05}, nll(0.4), nll(-0.4)),
    ],
)
def test_label_smoothing_reverses_the_whole_logit_and_leaves_likelihoods_alone(loss, settings, kept, turned):
    smoothed = value(f"{loss}+label_smoothing", **settings, label_smoothing=0.2)
    assert smoothed == pytest.approx(0.8 * kept + 0.2 * turned, abs=1e-6)


def test_label_smoothing_of_odpo_reverses_its_offset_too():
    """Scores 3 and 1: the logit is 0.5 * 3 - log 2 = 0.806853."""
    batch = the_pair(chosen_scores=torch.tensor([3.0]), rejected_scores=torch.tensor([1.0]))
    smoothed = get_loss("odpo+label_smoothing")(batch, beta=0.5, alpha=1.0, label_smoothing=0.2).item()
    assert smoothed == pytest.approx(0.8 * nll(0.806853) + 0.2 * nll(-0.806853), abs=1e-6)


def test_nll_of_ipo_sum():
    """tau 0.1: (3 - 5)^2 = 4, plus 0.2 times the NLL per token 10/4."""
    assert value("ipo_sum+nll", tau=0.1, nll_weight=0.2) == pytest.approx(4.5, abs=1e-5)


@pytest.mark.parametrize(("chosen", "rejected", "weight"), [(-0.5, -0.2, 0.496585), (0.3, 0.2, 1.0)])
def test_wpo(chosen, rejected, weight):
    """min(1, exp(-0.5 - 0.2)) = e^-0.7 = 0.496585 times DPO's 0.554355."""
    fields = {"chosen_confidence": torch.tensor([chosen]), "rejected_confidence": torch.tensor([rejected])}
    loss = get_loss("dpo+wpo")
    assert loss(the_pair(**fields), beta=0.1).item() == pytest.approx(weight * 0.554355, abs=1e-6)
    assert loss.needs == {"reference", "confidence"}


def test_modified_dpo_is_the_baseline_of_that_name():
    assert value("dpo+label_smoothing", label_smoothing=0.2) == pytest.approx(value("cdpo", label_smoothing=0.2))
    assert value("dpo+nll", nll_weight=0.2) == pytest.approx(value("dpo_nll", alpha=0.2))


def test_an_alpha_of_zero_is_the_forward_kl_and_one_is_refused():
    assert value("dpo+alpha_divergence", divergence_alpha=0.0) == pytest.approx(value("dpo+forward_kl"))
    with pytest.raises(RegistryError, match="divergence_alpha must be a float at least 0 and below 1"):
        value("dpo+alpha_divergence", divergence_alpha=1.0)


def test_modifiers_apply_from_left_to_right_and_settings_reach_their_part():
    both = value("dpo+js+nll", beta=0.3, nll_weight=0.2)
    assert both == pytest.approx(value("dpo+js", beta=0.3) + 0.2 * 2.5, abs=1e-6)
    assert get_loss("dpo+js+nll").paper == "2305.18290, 2309.16240"


def test_exp_goes_on_along_its_tangent():
    x = torch.tensor([29.0, 30.0, 31.0, 1e4], requires_grad=True)
    y = exp(x)
    y.sum().backward()
    assert y[:2].tolist() == pytest.approx([torch.tensor(v).exp().item() for v in (29.0, 30.0)])
    assert y[2].item() == pytest.approx(2 * y[1].item()) and y.isfinite().all()
    assert x.grad[3].item() == pytest.approx(y[1].item())


def test_a_loss_that_is_modified_twice_conforms_like_any_other():
    outcomes = check_loss(get_loss("dpo+js+nll+label_smoothing"))
    assert not [outcome for outcome in outcomes if outcome.status == FAILED]


FITS = {
    "dpo": {"label_smoothing", "nll", "wpo", "forward_kl", "js", "alpha_divergence"},
    "ipo": {"label_smoothing", "nll", "wpo", "forward_kl", "js", "alpha_divergence"},
    "simpo": {"label_smoothing", "nll", "wpo"},
    "rpo_paired": {"label_smoothing", "nll", "forward_kl", "js", "alpha_divergence"},
    "rpo_reward_sq": {"nll", "wpo", "forward_kl", "js", "alpha_divergence"},  # scores, and no label
    "exo": {"nll", "wpo", "forward_kl", "js", "alpha_divergence"},  # smooths its label itself
    "nca": {"nll", "wpo"},
    "aot": {"label_smoothing", "nll"},
    "aot_unpaired": {"label_smoothing", "forward_kl", "js", "alpha_divergence"},
    "plackett_luce": {"forward_kl", "js", "alpha_divergence"},
    "kto": set(),
    "bco": set(),
    "ppo_offline": set(),
}


@pytest.mark.parametrize("name", FITS)
def test_what_fits_a_loss_follows_from_what_it_reads(name):
    built_in = {modifier for modifier in MODIFIERS if "/losses/modifiers.py:" in MODIFIERS.origin(modifier)}
    assert {modified.name.partition("+")[2] for modified in fitting(get_loss(name))} & built_in == FITS[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("simpo+js", "js acts on log-ratios, and simpo has no reference"),
        ("aot+js", "js acts on log-ratios, and aot is no function of them"),
        ("dpo+js+forward_kl", r"forward_kl acts on log-ratios, and dpo\+js .* or they have been replaced"),
        ("kto_zero+js", "js knows log-ratios up to a constant, and kto_zero reads them one by one"),
        ("bco+forward_kl", "forward_kl knows log-ratios up to a constant, and bco reads them one by one"),
        ("aot+wpo", "wpo is for pairs one by one, and the rows of aot belong to several"),
        ("sppo+label_smoothing", "reverses a logit for a flipped label, and sppo marks none with batch.labelled"),
        ("kto_zero+nll", "nll is for paired losses, and kto_zero is unpaired"),
        ("ppo_offline+nll", "nll is for paired losses, and ppo_offline is unpaired"),
        ("ppo_offline+js", "js acts on log-ratios of responses, and ppo_offline takes tokens"),
        ("cdpo+label_smoothing", "both parts have a hyper-parameter 'label_smoothing'"),
        ("dpo+label_smoothin", "unknown modifier 'label_smoothin'; did you mean 'label_smoothing'"),
        ("dop+nll", "unknown loss 'dop'; did you mean 'dpo'"),
    ],
)
def test_a_combination_that_makes_no_sense_is_refused(name, message):
    with pytest.raises(RegistryError, match=message):
        get_loss(name)


@pytest.fixture
def registered(monkeypatch):
    """What a test registers is gone after it."""
    for registry in (LOSSES, MODIFIERS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def test_a_user_s_loss_marks_its_label_and_has_it_smoothed(registered):
    @register_loss("squared", grid={"beta": [0.1]}, start_value=lambda beta: 1.0)
    def squared(batch, *, beta: float = 0.1):
        """Squared."""
        return (1 - batch.labelled(beta * batch.logratio_margin)) ** 2

    assert value("squared+label_smoothing", label_smoothing=0.2) == pytest.approx(0.8 * 0.7**2 + 0.2 * 1.3**2)


def test_a_modifier_that_fails_or_starts_elsewhere_is_refused_before_anything_is_trained(registered):
    @register_modifier("swapped")
    def swapped(loss, batch):
        """The responses change places, and odpo's scores with them."""
        return loss(batch.changed(lambda parts: parts[::-1]))

    @register_modifier("doubled")
    def doubled(loss, batch):
        """Twice the loss."""
        return 2 * loss(batch)

    @register_modifier("summed", keeps_start=False)
    def summed(loss, batch):
        """No longer one value per pair."""
        return loss(batch).sum()

    @register_modifier("leaving")
    def leaving(loss, batch):
        """Ends the program."""
        sys.exit(0)

    for name, message in {
        "dpo+leaving": r"loss 'dpo\+leaving' fails on random log-probs: SystemExit: 0",
        "odpo+swapped": r"loss 'odpo\+swapped' fails on random log-probs: ValueError: odpo takes the log of",
        "dpo+doubled": r"doubled changes the start value, declared to stay 0\.693147, to 1\.38629",
        "dpo+summed": r"loss 'dpo\+summed' fails on random log-probs: ValueError: .* must return one value per row",
    }.items():
        with pytest.raises(RegistryError, match=message) as refused:
            get_loss(name)
        assert "\n" not in str(refused.value)
