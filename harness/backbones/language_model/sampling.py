"""Sampling from a policy with explicit decoding settings and noise determined by the prompt.

The noise of a sample depends only on (seed, prompt id, position), not on the batch or the policy, so that policies are
compared under common random numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, TemperatureLogitsWarper, TopPLogitsWarper

from harness.backbones.language_model.stepping import Cached, Steps
from harness.core.config import SampleConfig

CROWDED = 0.75  # finished rows are removed once at most this fraction is unfinished, because removal copies the rest


@dataclass(frozen=True)
class Completion:
    """A sampled completion: its ids, including any stop token, and whether it ended with one."""

    ids: tuple[int, ...]
    finished: bool


@dataclass(frozen=True)
class Drawing:
    """How completions are drawn: settings, the seed of the noise, the ids that stop and pad, and how tokens follow."""

    decoding: SampleConfig
    seed: int
    stop_tokens: Sequence[int]
    pad_token: int
    steps: type[Steps] = Cached


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    ids: Sequence[str],
    drawing: Drawing,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Completion]:
    """Return one completion per prompt, in the order of `prompts`.

    `prompts` are token ids up to the start of the assistant's turn; `ids` are their names, which determine the noise.
    Prompts are sorted by length into batches of `decoding.batch_size`. Greedy at temperature 0.
    """
    model.eval()
    decoding = drawing.decoding
    results: list[Completion | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), decoding.batch_size):
        rows = order[start : start + decoding.batch_size]
        batch = drawing.steps(model, [prompts[i] for i in rows], drawing.pad_token)
        draw = _Draw(decoding, [ids[i] for i in rows], drawing.seed)
        for i, tokens in zip(rows, _complete(batch, len(rows), draw, drawing), strict=True):
            results[i] = Completion(tuple(tokens), finished=tokens[-1] in drawing.stop_tokens)
        progress(min(start + len(rows), len(order)), len(order))
    return results


def _complete(batch: Steps, count: int, draw: _Draw, drawing: Drawing) -> list[list[int]]:
    """Return for each of `count` rows the tokens up to a stop token or the limit. Finished rows leave the batch."""
    completions: list[list[int]] = [[] for _ in range(count)]
    rows, running = list(range(count)), [True] * count  # what is in the batch, and whether it goes on
    while True:
        drawn = draw(batch.logits(), rows)
        for place, (row, token) in enumerate(zip(rows, drawn.tolist(), strict=True)):
            if running[place]:
                completions[row].append(token)
                running[place] = (
                    token not in drawing.stop_tokens and len(completions[row]) < drawing.decoding.max_new_tokens
                )
        if not any(running):
            return completions
        batch.extend(drawn)
        if sum(running) <= CROWDED * len(rows):
            stay = [place for place, goes_on in enumerate(running) if goes_on]
            batch.select(torch.tensor(stay, device=drawn.device))
            rows = [rows[place] for place in stay]
            running = [True] * len(rows)


class _Draw:
    """Draws a token for each row: at temperature 0 the most likely one, otherwise by inverting the CDF of the nucleus.

    The uniform random number depends only on the seed, the row's prompt and the position.
    """

    def __init__(self, decoding: SampleConfig, ids: Sequence[str], seed: int):
        self._warpers: list[LogitsProcessor] = []
        self._greedy = decoding.temperature == 0
        if not self._greedy:
            self._warpers.append(TemperatureLogitsWarper(float(decoding.temperature)))
        if decoding.top_p < 1:
            self._warpers.append(TopPLogitsWarper(decoding.top_p))
        keys = [hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8] for name in ids]
        self._generators = [np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big"))) for key in keys]

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """Return `(len(rows),)` token ids for fp32 logits `(len(rows), vocabulary)` of some of the rows."""
        if self._greedy:
            return logits.argmax(dim=1)
        for warper in self._warpers:
            logits = warper(None, logits)
        uniform = torch.tensor([[self._generators[row].random()] for row in rows], dtype=torch.float64)
        cumulative = logits.double().softmax(dim=1).cumsum(dim=1)
        chosen = torch.searchsorted(cumulative, uniform.to(logits.device) * cumulative[:, -1:], right=True)
        return chosen.squeeze(1).clamp(max=logits.shape[1] - 1)
