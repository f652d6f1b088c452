"""What is measured where the reward is known: the reward of a policy's samples and its divergence from the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from harness.backbones.language_model.divergence import divergences
from harness.backbones.language_model.policy import Policy
from harness.backbones.language_model.scoring import BatchSource
from harness.backbones.language_model.tokens import PreparedTask, Tokens, prompt_text
from harness.tasks.rewards.base import Reward


def measured(
    policy: Policy,
    reference: Policy,
    drawn: Sequence[Mapping],
    prepared: PreparedTask,
    reward: Reward,
    source: Callable[[list[Tokens]], BatchSource],
) -> list[dict]:
    """Return a row for each of the policy's responses that `draw_responses` gave to a task's test prompts.

    `kl` is the sample's log-ratio (its mean estimates KL(policy || reference) without bias), `kl_exact` and `entropy`
    are `divergences`, all in nats; `reference_logp` is the sample's log-prob under the reference. `source` makes
    batches of token sequences.
    """
    sequences = [Tokens(ids, tuple(row["ids"])) for ids, row in zip(prepared.question_ids, drawn, strict=True)]
    kl, entropy = divergences(policy, reference, source(sequences))
    return [
        {
            **{key: row[key] for key in ("id", "response", "tokens", "finished", "reference_logp")},
            "reward": reward(prompt_text(question.prompt), row["response"]),
            "kl": row["logp"] - row["reference_logp"],
            "kl_exact": float(kl[i]),
            "entropy": float(entropy[i]),
        }
        for i, (question, row) in enumerate(zip(prepared.questions, drawn, strict=True))
    ]
