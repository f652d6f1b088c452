"""Batches of sequences, and what none of them may hold."""

import pytest

from harness.backbones.language_model.policy import load_policy
from harness.backbones.language_model.scoring import BatchSource
from harness.backbones.language_model.tokens import Tokens
from harness.core.config import ModelConfig
from harness.core.errors import UserError


@pytest.mark.parametrize("shared", [False, True])
def test_a_sequence_beyond_the_context_is_refused_in_any_batch(tiny_model, shared):
    """Positions that do not exist, or that change those of the other sequences, are never asked for."""
    policy = load_policy(tiny_model, ModelConfig())
    prompt = (5,) * 300
    fits, longer = Tokens(prompt, (6,) * 212), Tokens(prompt, (6,) * 213)
    BatchSource([fits] * 2, 2, 10**6, shared).batch([0, 1], policy)  # a shared row may be longer
    with pytest.raises(
        UserError, match="a sequence has 513 tokens, and the context of the model 512; lower max_prompt"
    ):
        BatchSource([fits, longer], 2, 10**6, shared).score([policy])
