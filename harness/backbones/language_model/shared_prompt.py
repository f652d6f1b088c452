"""Whether a model supports rows with several completions of one prompt, by its configuration and by a trial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from harness.backbones.language_model.decoder import why_one_each
from harness.backbones.language_model.policy import LanguageModel
from harness.backbones.language_model.rows import collate, layout, padded_tokens
from harness.backbones.language_model.tokens import Tokens
from harness.core.errors import first_line

TOLD = 200  # characters of an error
ROWS = 4  # number of shared rows in the trial: the first ones and the longest
# Largest relative difference of hidden states due to rounding. If completions attend to each other, it is larger.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


@torch.no_grad()
def why_apart(policy: LanguageModel, sequences: Sequence[Tokens], pad_token: int) -> str | None:
    """Return why completions of one prompt need separate rows in this model; None if they can share a row.

    Besides the attention, the model must support positions that restart. Hidden states must then equal those of
    separate rows, which is tested on a few shared rows. The longest is among them, because some models treat long rows
    in another way than short ones.
    """
    if reason := why_one_each(policy.model, max(map(len, sequences))):
        return reason
    rows = list(_shared_rows(sequences))
    if not rows:
        return None
    longest = max(rows, key=lambda row: padded_tokens(row, shared=True))
    few = [s for row in [*rows[: ROWS - 1], longest] for s in row]
    policy.eval()
    try:
        apart, together = (
            policy.predictors(collate(few, pad_token, shared=shared).to(policy.device)).float()
            for shared in (False, True)
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"it does not run ({type(error).__name__}: {first_line(error)[:TOLD]})"
    difference = ((together - apart).norm() / apart.norm()).item()
    if not difference <= TOLERANCE[policy.compute_dtype]:
        return f"hidden states differ by {difference:.1%} from those of rows of their own"
    return None


def _shared_rows(sequences: Sequence[Tokens]) -> Iterator[list[Tokens]]:
    """Yield the sequences of each row that has more than one, if all sequences were in one batch."""
    groups: dict[tuple[int, ...], list[Tokens]] = {}
    for sequence in sequences:
        groups.setdefault(sequence.prompt, []).append(sequence)
    for group in groups.values():
        rows: dict[int, list[Tokens]] = {}
        for sequence, (row, _) in zip(group, layout(group, shared=True), strict=True):
            rows.setdefault(row, []).append(sequence)
        yield from (row for row in rows.values() if len(row) > 1)
