"""Registered judges: what of their options is in a key, and that their bounds are checked."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

import pytest

import harness.evaluation.judges  # noqa: F401 (registers the judges)
from harness.core.dials import dial
from harness.core.errors import UserError
from harness.evaluation.alpaca_eval.options import AlpacaEvalOptions
from harness.evaluation.base import JUDGES, register_judge
from harness.evaluation.judges.gold import GoldOptions
from harness.evaluation.judges.hf_pairwise import PairwiseOptions
from harness.evaluation.judges.local import LocalOptions
from harness.evaluation.judges.openai import OpenAIOptions
from harness.evaluation.judges.preference_model import PreferenceModelOptions

LOCAL = {"model": "m", "revision": None, "dtype": "float32", "max_tokens": 2048, "agreement_pairs": 256}
FEATURES = ["style", "style+embedding", "style+words+embedding"]
ASKED = {"temperature": 0.0, "seed": None, "max_tokens": 512, "reasoning_effort": "", "logprobs": 5}


@pytest.mark.parametrize(
    ("kind", "options", "part"),
    [
        ("gold", GoldOptions("r"), {"reward": "r", "margin": 0.0}),
        ("reward_model", LocalOptions("m"), LOCAL),
        ("hf_pairwise", PairwiseOptions("m"), {**LOCAL, "template": ""}),
        (
            "preference_model",
            PreferenceModelOptions(),
            {"features": FEATURES, "C": [0.01, 0.1, 1.0, 10.0], "folds": 5},
        ),
        (
            "openai",
            OpenAIOptions("m"),
            {
                **ASKED,
                "model": "m",
                "base_url": "",
                "template": "",
                "both_orders": True,
                "extra": {},
                "agreement_pairs": 0,
            },
        ),
        (
            "alpaca_eval",
            AlpacaEvalOptions(),
            {
                "model": "",
                "base_url": "",
                "annotator": "weighted_alpaca_eval_gpt4_turbo",
                "request": {},
                "engine": "harness",
                "difficulty": "auto",
            },
        ),
    ],
)
def test_what_identifies_a_judge_s_verdicts_stays_what_it_was(kind, options, part):
    """Judgements are kept by these options: a changed part would have paid answers asked for again."""
    assert JUDGES.get(kind).identity(options) == part


@pytest.mark.parametrize("kind", sorted(JUDGES))
def test_every_float_of_a_judge_s_options_is_a_dial(kind):
    """A float declared without `dial` would accept infinity and NaN."""
    declared = [field for field in fields(JUDGES.get(kind).options) if re.search(r"\bfloat\b", str(field.type))]
    assert [field.name for field in declared if not field.metadata] == []


@dataclass
class Options:
    words: int = dial(3, at_least=1)
    weights: dict[str, float] = dial({"a": 1.0}, above=0, numeric=False)


def test_a_judge_of_the_user_s_own_has_its_bounds_checked_before_its_own_check():
    asked = []
    register_judge("counts", options=Options, check=asked.append)(lambda options, context: None)
    kind = JUDGES.get("counts")
    with pytest.raises(UserError, match=re.escape("judge.words must be at least 1, got 0")):
        kind.check(Options(words=0))
    with pytest.raises(UserError, match=re.escape("judge.weights.b must be a number above 0, got -2.0")):
        kind.check(Options(weights={"a": 1.0, "b": -2.0}))
    assert asked == []
    kind.check(options := Options())
    assert asked == [options] and kind.identity(options) == {"words": 3}


def test_each_dict_has_a_default_of_its_own():
    first, second = Options(), Options()
    first.weights["b"] = 2.0
    assert second.weights == {"a": 1.0}
