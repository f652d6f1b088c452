"""Whether a model supports rows with several completions of one prompt, by its configuration and by a trial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch

from harness.backbones.language_model.decoder import why_one_each
from harness.backbones.language_model.policy import LanguageModel
from harness.backbones.language_model.rows import collate
from harness.backbones.language_model.tokens import Tokens

PROMPTS = 4  # number of prompts in the trial
# Largest relative difference of hidden states due to rounding. If completions attend to each other, it is larger.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


@torch.no_grad()
def why_apart(policy: LanguageModel, sequences: Sequence[Tokens], pad_token: int) -> str | None:
    """Return why completions of one prompt need separate rows in this model; None if they can share a row.

    Besides the attention, the model must support positions that restart. Hidden states must then equal those of
    separate rows, which is tested on the first few prompts with more than one completion.
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


def _of_one_prompt(sequences: Sequence[Tokens]) -> Iterator[list[Tokens]]:
    """Yield the sequences of each prompt with more than one, if they would share a row."""
    groups: dict[tuple[int, ...], list[Tokens]] = {}
    for sequence in sequences:
        groups.setdefault(sequence.prompt, []).append(sequence)
    for group in groups.values():
        if len(group) > 1 and collate(group, 0, shared=True).segments is not None:
            yield group
