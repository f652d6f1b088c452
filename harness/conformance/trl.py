"""Numerical comparisons with TRL's losses, asserted by tests/conformance/test_trl.py and shown in docs/losses.md.

Each comparison runs TRL's own trainer code and our loss on the same real log-probs. If the two agree, they agree in
value and in the gradient on every log-prob. If they do not, the reason is given here, and the test asserts that they
disagree, so that a change on either side is noticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

VERSION = "1.16.0"
TOLERANCE = 1e-5  # relative to the value, and to the largest gradient

# How the pairs are presented to both: some of TRL's terms are means over a batch's tokens, some exponentials overflow.
BATCH = "in batches"
ALONE = "pair by pair"
PROMPTS = "pair by pair, with prompts"
SURE = "in batches, a policy surer than its own average"
NEAR = "in batches, log-ratios within 30 nats"


@dataclass(frozen=True)
class Counterpart:
    """A loss with its settings and a TRL trainer with its options; `differs` says why, if they disagree."""

    loss: str
    settings: Mapping[str, object]
    trainer: str  # DPO, KTO, CPO or ORPO
    options: Mapping[str, object]
    setup: str = BATCH
    differs: str = ""


TOKENS = (
    "TRL's NLL is the mean over all tokens of a micro-batch; here each response counts alike, however the batch is cut"
)
TANGENT = (
    "TRL's exp overflows or is cut off at 80, and its gradient vanishes; here exp goes on along its tangent above 30"
)

COUNTERPARTS = [
    Counterpart("dpo", {"beta": 0.1}, "DPO", {"loss_type": "sigmoid", "beta": 0.1}),
    Counterpart("dpo_norm", {"beta": 5.0}, "DPO", {"loss_type": "sigmoid_norm", "beta": 5.0}),
    Counterpart("ipo", {"tau": 0.1}, "DPO", {"loss_type": "ipo", "beta": 0.1}),
    Counterpart("hinge", {"gamma": 0.05}, "DPO", {"loss_type": "hinge", "beta": 0.05}),
    Counterpart(
        "robust_dpo",
        {"beta": 0.1, "label_smoothing": 0.2},
        "DPO",
        {"loss_type": "robust", "beta": 0.1, "label_smoothing": 0.2},
    ),
    Counterpart(
        "exo",
        {"beta": 0.5, "label_smoothing": 0.01},
        "DPO",
        {"loss_type": "exo_pair", "beta": 0.5, "label_smoothing": 0.01},
    ),
    Counterpart("nca", {"beta": 0.01}, "DPO", {"loss_type": "nca_pair", "beta": 0.01}),
    Counterpart("sppo", {"beta": 0.01}, "DPO", {"loss_type": "sppo_hard", "beta": 0.01}),
    Counterpart("aot", {"beta": 0.01}, "DPO", {"loss_type": "aot", "beta": 0.01}),
    Counterpart("aot_unpaired", {"beta": 0.01}, "DPO", {"loss_type": "aot_unpaired", "beta": 0.01}),
    Counterpart(
        "aot+label_smoothing",
        {"beta": 0.01, "label_smoothing": 0.2},
        "DPO",
        {"loss_type": "aot", "beta": 0.01, "label_smoothing": 0.2},
    ),
    Counterpart(
        "aot_unpaired+label_smoothing",
        {"beta": 0.01, "label_smoothing": 0.2},
        "DPO",
        {"loss_type": "aot_unpaired", "beta": 0.01, "label_smoothing": 0.2},
    ),
    Counterpart("apo_zero", {"beta": 0.1}, "DPO", {"loss_type": "apo_zero", "beta": 0.1}),
    Counterpart("apo_down", {"beta": 0.1}, "DPO", {"loss_type": "apo_down", "beta": 0.1}),
    Counterpart(
        "discopop", {"beta": 0.05, "tau": 0.05}, "DPO", {"loss_type": "discopop", "beta": 0.05, "discopop_tau": 0.05}
    ),
    Counterpart(
        "dpo_nll",
        {"beta": 0.1, "alpha": 0.2},
        "DPO",
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2], "beta": 0.1},
        ALONE,
    ),
    Counterpart(
        "ipo+nll",
        {"tau": 0.1, "nll_weight": 0.2},
        "DPO",
        {"loss_type": ["ipo", "sft"], "loss_weights": [1.0, 0.2], "beta": 0.1},
        ALONE,
    ),
    Counterpart(
        "dpo+js", {"beta": 0.1}, "DPO", {"loss_type": "sigmoid", "beta": 0.1, "f_divergence_type": "js_divergence"}
    ),
    Counterpart(
        "hinge+js", {"gamma": 0.05}, "DPO", {"loss_type": "hinge", "beta": 0.05, "f_divergence_type": "js_divergence"}
    ),
    Counterpart("ipo+js", {"tau": 0.1}, "DPO", {"loss_type": "ipo", "beta": 0.1, "f_divergence_type": "js_divergence"}),
    Counterpart(
        "dpo+forward_kl",
        {"beta": 0.1},
        "DPO",
        {"loss_type": "sigmoid", "beta": 0.1, "f_divergence_type": "forward_kl"},
        NEAR,
    ),
    Counterpart(
        "dpo+alpha_divergence",
        {"beta": 0.1, "divergence_alpha": 0.5},
        "DPO",
        {"loss_type": "sigmoid", "beta": 0.1, "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
        NEAR,
    ),
    Counterpart("dpo+wpo", {"beta": 0.1}, "DPO", {"loss_type": "sigmoid", "beta": 0.1, "use_weighting": True}),
    Counterpart("kto", {"beta": 0.1}, "KTO", {"loss_type": "kto", "beta": 0.1}),
    Counterpart("apo_zero_unpaired", {"beta": 0.1}, "KTO", {"loss_type": "apo_zero_unpaired", "beta": 0.1}),
    Counterpart(
        "kto_zero",
        {"beta": 0.1, "desirable_weight": 1.33, "undesirable_weight": 0.8},
        "KTO",
        {"loss_type": "apo_zero_unpaired", "beta": 0.1, "desirable_weight": 1.33, "undesirable_weight": 0.8},
    ),
    Counterpart(
        "simpo",
        {"beta": 2.0, "gamma_ratio": 0.4},
        "CPO",
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.8, "cpo_alpha": 0.0},
    ),
    Counterpart(
        "cpo", {"beta": 0.1, "alpha": 1.0}, "CPO", {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0}, ALONE
    ),
    Counterpart("slic", {"delta": 1.0, "lam": 0.0}, "CPO", {"loss_type": "hinge", "beta": 1.0, "cpo_alpha": 0.0}),
    Counterpart(
        "simpo+label_smoothing",
        {"beta": 2.0, "gamma_ratio": 0.4, "label_smoothing": 0.2},
        "CPO",
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.8, "cpo_alpha": 0.0, "label_smoothing": 0.2},
    ),
    Counterpart(
        "cpo+label_smoothing",
        {"beta": 0.1, "alpha": 1.0, "label_smoothing": 0.2},
        "CPO",
        {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0, "label_smoothing": 0.2},
        ALONE,
    ),
    Counterpart("orpo", {"lam": 0.1}, "ORPO", {"beta": 0.1}, ALONE),
    # Divergences of the other losses for which TRL takes them.
    *(
        Counterpart(
            f"{loss}+js",
            settings,
            "DPO",
            {"loss_type": kind, "f_divergence_type": "js_divergence", **options},
        )
        for loss, settings, kind, options in (
            ("dpo_norm", {"beta": 5.0}, "sigmoid_norm", {"beta": 5.0}),
            (
                "robust_dpo",
                {"beta": 0.1, "label_smoothing": 0.2},
                "robust",
                {"beta": 0.1, "label_smoothing": 0.2},
            ),
            ("exo", {"beta": 0.5, "label_smoothing": 0.01}, "exo_pair", {"beta": 0.5, "label_smoothing": 0.01}),
            ("discopop", {"beta": 0.05, "tau": 0.05}, "discopop", {"beta": 0.05, "discopop_tau": 0.05}),
        )
    ),
    Counterpart("ipo+wpo", {"tau": 0.1}, "DPO", {"loss_type": "ipo", "beta": 0.1, "use_weighting": True}),
    # Disagreements.
    Counterpart(
        "cdpo",
        {"beta": 0.1, "label_smoothing": 0.1},
        "DPO",
        {"loss_type": "sigmoid", "beta": 0.1, "label_smoothing": 0.1},
        differs="TRL's `sigmoid` ignores label_smoothing and is `dpo`; here both orders of the labels are weighted",
    ),
    Counterpart(
        "ipo_sum",
        {"tau": 0.1},
        "DPO",
        {"loss_type": "ipo", "beta": 0.1},
        differs="TRL has only the form that averages over tokens, which is `ipo`; the sum has a name of its own here",
    ),
    Counterpart(
        "dpo_nll",
        {"beta": 0.1, "alpha": 0.2},
        "DPO",
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2], "beta": 0.1},
        differs=TOKENS,
    ),
    Counterpart(
        "cpo",
        {"beta": 0.1, "alpha": 1.0},
        "CPO",
        {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0},
        differs=TOKENS,
    ),
    Counterpart("orpo", {"lam": 0.1}, "ORPO", {"beta": 0.1}, differs=TOKENS),
    Counterpart(
        "orpo",
        {"lam": 0.1},
        "ORPO",
        {"beta": 0.1},
        PROMPTS,
        differs="TRL's NLL runs over the prompt too, as the authors' does by default; here it is the response's alone",
    ),
    Counterpart(
        "dpo+forward_kl",
        {"beta": 0.1},
        "DPO",
        {"loss_type": "sigmoid", "beta": 0.1, "f_divergence_type": "forward_kl"},
        differs=TANGENT,
    ),
    Counterpart(
        "dpo+alpha_divergence",
        {"beta": 0.1, "divergence_alpha": 0.5},
        "DPO",
        {"loss_type": "sigmoid", "beta": 0.1, "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
        differs=TANGENT,
    ),
    Counterpart(
        "simpo",
        {"beta": 2.0, "gamma_ratio": 0.5},
        "CPO",
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0},
        differs="TRL's simpo_gamma is the margin itself; gamma_ratio is a ratio of beta, as in the authors' code",
    ),
    Counterpart(
        "simpo",
        {},
        "CPO",
        {"loss_type": "simpo"},
        differs="TRL's defaults (beta 0.1, cpo_alpha 1, a margin of 0.5) add an NLL term and are not SimPO's",
    ),
    Counterpart(
        "slic+label_smoothing",
        {"delta": 1.0, "lam": 0.0, "label_smoothing": 0.2},
        "CPO",
        {"loss_type": "hinge", "beta": 1.0, "cpo_alpha": 0.0, "label_smoothing": 0.2},
        differs="TRL's `hinge` ignores label_smoothing and is `slic`; here both signs of the margin are weighted",
    ),
    Counterpart(
        "dpo+wpo",
        {"beta": 0.1},
        "DPO",
        {"loss_type": "sigmoid", "beta": 0.1, "use_weighting": True},
        SURE,
        differs="TRL's weights may exceed 1; here they are cut off there",
    ),
    Counterpart(
        "bco",
        {"beta": 0.1},
        "DPO",
        {"loss_type": "bco_pair", "beta": 0.1},
        differs=(
            "TRL's `bco_pair` lacks the running shift of rewards, and adds up a pair's two rows; "
            "its BCO trainer is gone"
        ),
    ),
    Counterpart(
        "nca",
        {"beta": 0.01},
        "DPO",
        {"loss_type": "bco_pair", "beta": 0.01},
        differs="TRL's `bco_pair` is a relative of `nca` with other weights: it is no BCO either",
    ),
]
