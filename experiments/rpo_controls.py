"""Two controls for experiments/rpo_controls.yaml: RPO in blocks of a given size, and RPO without its diagonal."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import logsigmoid

from losses import register_loss
from losses.rpo import BETAS, TEMPERATURES, contrast, embedding_weights

NEEDS = ("reference", "prompt_embeddings")


@register_loss(
    "rpo_blocks",
    paper="2402.10958",
    grid={"beta": BETAS, "temperature": TEMPERATURES, "size": [2, 4, 8, 16, 32, 64]},
    needs=NEEDS,
    couples_examples=True,
    start_value=lambda beta, temperature, size: math.log(2),
)
def rpo_blocks(batch, *, beta: float = 0.1, temperature: float = 0.5, size: int = 8):
    """RPO-paired where each pair is contrasted with those of its block of `size` pairs alone, weights over the block.

    The effective batch stays what it is: so much does the contrast's size change by itself. The paper's code does this
    unintentionally, its contrast being that of one device's share of a batch. Size 1 is DPO; from the batch's size on
    it is rpo_paired.
    """
    weights = batch.chosen.require("prompt_embeddings"), batch.rejected.require("prompt_embeddings")
    deltas, rows = contrast(batch), []
    for start in range(0, len(batch.chosen), size):
        block = slice(start, start + size)
        own = embedding_weights(*(side[block] for side in weights), temperature)
        rows.append(-logsigmoid(beta * own * deltas[block, block]).mean(dim=1))
    return torch.cat(rows)


@register_loss(
    "rpo_off_diagonal",
    paper="2402.10958",
    grid={"beta": BETAS, "temperature": TEMPERATURES},
    needs=NEEDS,
    couples_examples=True,
    start_value=lambda beta, temperature: math.log(2),
)
def rpo_off_diagonal(batch, *, beta: float = 0.1, temperature: float = 0.5):
    """RPO-paired without the pairs themselves: only contrasts of different prompts, weights over those.

    What it learns, it learns from the contrast over prompts. A batch of one pair has no other contrast, and no loss.
    """
    chosen, rejected = batch.chosen.require("prompt_embeddings"), batch.rejected.require("prompt_embeddings")
    count = len(batch.chosen)
    own = torch.eye(count, dtype=torch.bool, device=chosen.device)
    weights = embedding_weights(chosen, rejected, temperature).masked_fill(own, 0.0)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    losses = -logsigmoid(beta * weights * contrast(batch))
    return losses.masked_fill(own, 0.0).sum(dim=1) / max(1, count - 1)
