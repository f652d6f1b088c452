"""Measurements with a known reward: the reward of a policy's samples and its divergence from the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from harness.backbones.language_model.policy import LanguageModel
from harness.backbones.language_model.scoring import BatchSource
from harness.backbones.language_model.tokens import TokenQuestions, Tokens
from harness.core.prompt import prompt_text
from harness.core.records import Measure, Sample
from harness.tasks.rewards.base import Reward


def measure_samples(
    policy: LanguageModel,
    reference: LanguageModel,
    drawn: Sequence[Sample],
    at: float,
    asked: TokenQuestions,
    reward: Reward,
    source: Callable[[list[Tokens]], BatchSource],
) -> list[Measure]:
    """Return a measure of each response that `draw_responses` drew for a task's questions.

    `at` is the fraction of its training steps that the policy has taken. `kl` is the sample's log-ratio, whose mean
    estimates KL(policy || reference) without bias; `kl_exact` and `entropy` are `divergences`. `source` makes batches
    of token sequences.
    """
    sequences = [Tokens(ids, sample.ids) for ids, sample in zip(asked.ids, drawn, strict=True)]
    kl, entropy = divergences(policy, reference, source(sequences))
    return [
        Measure(
            at=at,
            id=sample.id,
            response=sample.response,
            tokens=sample.tokens,
            finished=sample.finished,
            reference_logp=sample.reference_logp,
            reward=reward(prompt_text(question.prompt), sample.response),
            kl=sample.logp - sample.reference_logp,
            kl_exact=float(kl[i]),
            entropy=float(entropy[i]),
        )
        for i, (question, sample) in enumerate(zip(asked.questions, drawn, strict=True))
    ]


@torch.no_grad()
def divergences(policy: LanguageModel, reference: LanguageModel, batches: BatchSource) -> tuple[np.ndarray, np.ndarray]:
    """Return for each sequence KL(policy || reference) and the policy's entropy, in nats, summed over its positions.

    If the sequences are sampled from the policy itself (temperature 1, not truncated), the mean of the first is an
    unbiased estimate of the sequence KL: the expectation over each next token is exact, and only the expectation over
    the preceding tokens is sampled (Rao-Blackwellisation; Amini, Vieira and Cotterell, 2504.10637). It is never
    negative, and varies less than the plain estimate, the sum of the sampled tokens' log-ratios.
    """
    kl, entropy = np.zeros(len(batches.sequences)), np.zeros(len(batches.sequences))
    for rows in batches.all_passes():
        batch = batches.batch(rows, policy)
        if batch.hidden is None and policy.trunk is not None:
            batch.hidden = policy.trunk_activations(batch)
        parts = []
        for ours, theirs in zip(policy.distributions(batch), reference.distributions(batch), strict=True):
            probabilities = ours.exp()
            terms = (probabilities * (ours - theirs), -probabilities * ours)
            parts.append(torch.stack([term.nan_to_num(0.0).sum(1, dtype=torch.float64) for term in terms]).cpu())
        per_token = torch.cat(parts, dim=1).numpy()  # nan comes from tokens of probability 0, which contribute 0
        starts = np.cumsum([0] + [len(batches.sequences[i].completion) for i in rows[:-1]])
        kl[rows], entropy[rows] = np.add.reduceat(per_token, starts, axis=1)
    return kl, entropy
