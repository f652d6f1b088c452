"""What a loss sees: log-probs of the policy and the reference, and the little else that some losses need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


class MissingData(ValueError):
    """A loss asked for something that the batch does not hold."""


@dataclass(frozen=True)
class Side:
    """One side of a batch: `n` completions that were preferred, or `n` that were not.

    The tensors are 1-D of length `n`, but `prompt_embeddings` is `(n, d)`. Log-probs are sums over the completion's
    tokens, in nats. `link` is what a modifier of the loss makes of log-ratios (see modifiers.py).
    """

    policy: Tensor
    reference: Tensor | None = None
    tokens: Tensor | None = None
    scores: Tensor | None = None
    prompt_embeddings: Tensor | None = None
    name: str = "completions"
    link: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return self.policy.shape[0]

    def require(self, field: str) -> Tensor:
        """Return an optional field, or raise `MissingData` that names it."""
        value = getattr(self, field)
        if value is None:
            raise MissingData(
                f"this loss needs {field.replace('_', ' ')} for the {self.name} side, and the batch has none"
            )
        return value

    @property
    def logratio(self) -> Tensor:
        """`(n,)` log pi(y|x) - log pi_ref(y|x), summed over the tokens of y."""
        ratio = self.policy - self.require("reference")
        return ratio if self.link is None else self.link(ratio)

    @property
    def mean_logratio(self) -> Tensor:
        """`(n,)` the log-ratio per completion token."""
        return self.logratio / self.lengths

    @property
    def mean_policy(self) -> Tensor:
        """`(n,)` the policy's log-prob per completion token."""
        return self.policy / self.lengths

    @property
    def lengths(self) -> Tensor:
        """`(n,)` completion tokens, in the log-probs' dtype and never below 1 (an empty completion has log-prob 0)."""
        return self.require("tokens").to(self.policy.dtype).clamp(min=1)


@dataclass(frozen=True)
class PreferenceBatch:
    """Chosen and rejected completions of one effective batch.

    In paired data row `i` of both sides answers the same prompt. In unpaired data the sides are two independent
    sets, and may differ in length.
    """

    chosen: Side
    rejected: Side

    @classmethod
    def from_logps(
        cls,
        policy_chosen: Tensor,
        policy_rejected: Tensor,
        reference_chosen: Tensor | None = None,
        reference_rejected: Tensor | None = None,
        *,
        chosen_tokens: Tensor | None = None,
        rejected_tokens: Tensor | None = None,
        prompt_embeddings: Tensor | None = None,
        chosen_prompt_embeddings: Tensor | None = None,
        rejected_prompt_embeddings: Tensor | None = None,
        chosen_scores: Tensor | None = None,
        rejected_scores: Tensor | None = None,
    ) -> PreferenceBatch:
        """Build a batch from 1-D tensors of summed log-probs and, where a loss needs them, the rest.

        `prompt_embeddings`, `(n, d)`, serves both sides of paired data; unpaired data takes one set for each side.
        Half-precision input is brought to fp32 (fp64 stays fp64). Raises `ValueError` on shapes that do not fit.
        """
        if prompt_embeddings is not None:
            if chosen_prompt_embeddings is not None or rejected_prompt_embeddings is not None:
                raise ValueError("pass either prompt_embeddings (paired data) or one set for each side, not both")
            chosen_prompt_embeddings = rejected_prompt_embeddings = prompt_embeddings
        chosen = _side(
            "chosen", policy_chosen, reference_chosen, chosen_tokens, chosen_scores, chosen_prompt_embeddings
        )
        rejected = _side(
            "rejected",
            policy_rejected,
            reference_rejected,
            rejected_tokens,
            rejected_scores,
            rejected_prompt_embeddings,
        )
        return cls(chosen, rejected)

    @property
    def logratio_margin(self) -> Tensor:
        """`(n,)` chosen minus rejected log-ratio of each pair (paired data): Delta in the papers' notation."""
        return self.chosen.logratio - self.rejected.logratio

    def with_policy(self, policy_chosen: Tensor, policy_rejected: Tensor) -> PreferenceBatch:
        """Return the same batch with other policy log-probs: the one part that carries gradients."""
        return PreferenceBatch(
            replace(self.chosen, policy=policy_chosen), replace(self.rejected, policy=policy_rejected)
        )


def _side(name, policy, reference, tokens, scores, embeddings) -> Side:
    policy = _at_least_fp32(torch.as_tensor(policy))
    if policy.ndim != 1:
        raise ValueError(
            f"policy_{name} must be 1-D (one summed log-prob per completion), got shape {tuple(policy.shape)}"
        )
    fields = {"reference": reference, "tokens": tokens, "scores": scores, "prompt_embeddings": embeddings}
    for field, value in fields.items():
        if value is None:
            continue
        value = torch.as_tensor(value)
        wanted = 2 if field == "prompt_embeddings" else 1
        if value.ndim != wanted or value.shape[0] != policy.shape[0]:
            raise ValueError(
                f"{field} of the {name} side must be {wanted}-D with {policy.shape[0]} rows, got shape {tuple(value.shape)}"
            )
        fields[field] = value if field == "tokens" else _at_least_fp32(value)
    return Side(policy, name=name, **fields)


def _at_least_fp32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
