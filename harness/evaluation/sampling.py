"""Sampling from a policy, with decoding that is explicit, and noise that belongs to the prompt.

The noise of a sample is a function of (seed, prompt id, position) alone: it depends neither on which prompts share a
batch nor on the policy, so that policies are compared under common random numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from harness.config import SampleConfig


@dataclass(frozen=True)
class Sample:
    """A sampled completion: its ids (with the stop token, if it came to one) and whether it ended by itself."""

    ids: tuple[int, ...]
    finished: bool


@torch.no_grad()
def sample(
    model,
    prompts: Sequence[Sequence[int]],
    ids: Sequence[str],
    *,
    decoding: SampleConfig,
    seed: int,
    stop_tokens: Sequence[int],
    pad_token: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Sample]:
    """Return one completion per prompt, in the order of `prompts`.

    `prompts` are token ids up to the point where the assistant begins; `ids` name them for their noise. Prompts are
    sorted by length into batches of `decoding.batch_size`, padded on the left. Greedy at temperature 0.
    """
    model.eval()
    model.generation_config = GenerationConfig()  # transformers fills what is left open from the model's own
    results: list[Sample | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    settings = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,  # the processor below leaves one token, and it is a sample
        num_beams=1,
        eos_token_id=list(stop_tokens),
        pad_token_id=pad_token,
        use_cache=True,
    )
    for start in range(0, len(order), decoding.batch_size):
        rows = order[start : start + decoding.batch_size]
        longest = max(len(prompts[i]) for i in rows)
        input_ids = torch.full((len(rows), longest), pad_token)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for r, i in enumerate(rows):
            input_ids[r, longest - len(prompts[i]) :] = torch.tensor(list(prompts[i]))
            mask[r, longest - len(prompts[i]) :] = 1
        output = model.generate(
            input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=settings,
            logits_processor=_processors(decoding, [ids[i] for i in rows], seed),
        )
        for i, row in zip(rows, output[:, longest:].tolist(), strict=True):
            end = next((k for k, token in enumerate(row) if token in stop_tokens), None)
            results[i] = Sample(tuple(row if end is None else row[: end + 1]), finished=end is not None)
        progress(min(start + len(rows), len(order)), len(order))
    return results


def _processors(decoding: SampleConfig, ids: Sequence[str], seed: int) -> LogitsProcessorList:
    if decoding.temperature == 0:
        return LogitsProcessorList()
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(decoding.temperature)]
    if decoding.top_p < 1:
        warpers.append(TopPLogitsWarper(decoding.top_p))
    return LogitsProcessorList([*warpers, _InverseCdf(ids, seed)])


class _InverseCdf(LogitsProcessor):
    """Leaves one token per row: the one at which the cumulative probability passes the row's uniform number."""

    def __init__(self, ids: Sequence[str], seed: int):
        keys = [hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8] for name in ids]
        self._generators = [np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big"))) for key in keys]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform = torch.tensor([[g.random()] for g in self._generators], dtype=torch.float64, device=scores.device)
        cumulative = scores.double().softmax(dim=1).cumsum(dim=1)
        chosen = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen.clamp(max=scores.shape[1] - 1), 0.0)
