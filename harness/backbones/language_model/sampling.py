"""Sampling from a policy with explicit decoding settings and noise determined by the prompt.

The noise of a sample depends only on (seed, prompt id, position), not on the batch or the policy, so that policies are
compared under common random numbers.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, PreTrainedModel, TemperatureLogitsWarper, TopPLogitsWarper

from harness.core.config import SampleConfig

CROWDED = 0.75  # finished rows are removed once at most this fraction is unfinished, because removal copies the rest


@dataclass(frozen=True)
class Completion:
    """A sampled completion: its ids, including any stop token, and whether it ended with one."""

    ids: tuple[int, ...]
    finished: bool


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    ids: Sequence[str],
    *,
    decoding: SampleConfig,
    seed: int,
    stop_tokens: Sequence[int],
    pad_token: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Completion]:
    """Return one completion per prompt, in the order of `prompts`.

    `prompts` are token ids up to the start of the assistant's turn; `ids` are their names, which determine the noise.
    Prompts are sorted by length into batches of `decoding.batch_size`, padded on the left. Greedy at temperature 0.
    """
    model.eval()
    results: list[Completion | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), decoding.batch_size):
        rows = order[start : start + decoding.batch_size]
        draw = _Draw(decoding, [ids[i] for i in rows], seed)
        drawn = _complete(model, [prompts[i] for i in rows], draw, decoding.max_new_tokens, stop_tokens, pad_token)
        for i, tokens in zip(rows, drawn, strict=True):
            results[i] = Completion(tuple(tokens), finished=tokens[-1] in stop_tokens)
        progress(min(start + len(rows), len(order)), len(order))
    return results


def _complete(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    draw: _Draw,
    limit: int,
    stop_tokens: Sequence[int],
    pad_token: int,
) -> list[list[int]]:
    """Return for each prompt the tokens up to a stop token or the limit. Finished rows are removed from the batch."""
    device, accepted = model.device, inspect.signature(model.forward).parameters
    longest = max(map(len, prompts))
    tokens = torch.tensor([[pad_token] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    completions: list[list[int]] = [[] for _ in prompts]
    rows, running = list(range(len(prompts))), [True] * len(prompts)  # what is in the batch, and whether it goes on
    while True:
        inputs = {
            "input_ids": tokens,
            "attention_mask": mask,
            "position_ids": positions,
            "past_key_values": cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        logits = model(**{name: value for name, value in inputs.items() if name in accepted}).logits[:, -1]
        drawn = draw(logits.float(), rows)
        for place, (row, token) in enumerate(zip(rows, drawn.tolist(), strict=True)):
            if running[place]:
                completions[row].append(token)
                running[place] = token not in stop_tokens and len(completions[row]) < limit
        if not any(running):
            return completions
        tokens, positions = drawn[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones((len(rows), 1))], dim=1)
        if sum(running) <= CROWDED * len(rows):
            stay = torch.tensor([place for place, goes_on in enumerate(running) if goes_on], device=device)
            tokens, positions, mask = tokens[stay], positions[stay], mask[stay]
            cache.batch_select_indices(stay)
            rows = [rows[place] for place in stay.tolist()]
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
