"""Whether a model may take the completions of one prompt in one row: looked up in its configuration, and tried."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch

from harness.backbones.language_model.decoder import why_one_each
from harness.backbones.language_model.policy import Policy
from harness.backbones.language_model.rows import collate
from harness.backbones.language_model.tokens import Tokens

PROMPTS = 4  # how many it is tried on
# Largest relative difference of hidden states that rounding explains. One that sees the other completion differs more.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


@torch.no_grad()
def why_apart(policy: Policy, sequences: Sequence[Tokens], pad_token: int) -> str | None:
    """Return why completions of one prompt need a row each in this model; None if they can share one.

    Beside the attention that this needs it needs positions that start again: then hidden states are those of a row for
    each completion, which is tried on the first few prompts that have more than one.
    """
    if reason := why_one_each(policy.model, max(map(len, sequences))):
        return reason
    sample = list(islice(_of_one_prompt(sequences), PROMPTS))
    if not sample:
        return None
    few = [s for group in sample for s in group]
    policy.eval()
    try:
        apart, together = (
            policy.predictors(collate(few, pad_token, shared=shared).to(policy.device)).float()
            for shared in (False, True)
        )
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return f"it does not run ({type(error).__name__}: {str(error).strip().splitlines()[0]})"
    difference = ((together - apart).norm() / apart.norm()).item()
    if not difference <= TOLERANCE[policy.compute_dtype]:
        return f"hidden states differ by {difference:.1%} from those of rows of their own"
    return None


def _of_one_prompt(sequences: Sequence[Tokens]):
    """Yield the sequences of each prompt that has more than one, where they would share a row."""
    groups: dict[tuple[int, ...], list[Tokens]] = {}
    for sequence in sequences:
        groups.setdefault(sequence.prompt, []).append(sequence)
    for group in groups.values():
        if len(group) > 1 and collate(group, 0, shared=True).segments is not None:
            yield group
