"""Modifiers: values by hand, what they leave as it was, and which combinations are refused.

`the_pair` has s_w = 2, s_l = -1, Delta = 3, l_w = -10 in 4 tokens; beta is 0.1.
"""

import pytest
import torch

from harness.conformance.outcomes import FAILED
from harness.conformance.suite import CHECKS, run_check
from losses import RegistryError, get_loss
from losses.modifiers import MODIFIERS
from losses.numerics import exp
from tests.losses.by_hand import the_pair


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
    with pytest.raises(ValueError, match="the reverse KL"):
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


COMBINED = [f"{loss}+{modifier}" for loss in ("dpo", "ipo_sum", "rpo_paired", "r_dpo") for modifier in MODIFIERS]
COMBINED += ["hpo+js", "hpo+label_smoothing", "hpo+nll", "hpo+wpo"]  # its DPO is modified, or all of it
COMBINED += ["kto_zero+js", "simpo+nll", "simpo+label_smoothing", "aot+label_smoothing", "dpo+js+nll+label_smoothing"]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMBINED)
def test_a_modified_loss_conforms_like_any_other(name):
    outcomes = [run_check(check, get_loss(name)) for check in CHECKS]
    assert not [outcome for outcome in outcomes if outcome.status == FAILED]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("simpo+js", "js acts on log-ratios, and simpo has no reference"),
        ("aot+js", "js acts on log-ratios, and aot is no function of them"),
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
