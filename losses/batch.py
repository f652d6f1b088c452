"""The input of a loss: log-probs of the policy and the reference, and further values that some losses need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from losses.numerics import rounding

OF_ONE_NUMBER = ("scores", "density_ratios", "second_reference", "confidence", "augmented")
SIDE_ARGUMENTS = ("prompt_embeddings", *OF_ONE_NUMBER)  # `from_logps` takes chosen_... and rejected_... of each
DIMENSIONS = {  # a user's own need may have any number
    "prompt_embeddings": 2,
    **dict.fromkeys(("reference", "tokens", *OF_ONE_NUMBER), 1),
}
INSTEAD = {  # of an entry of `needs`, these arguments of `from_logps`
    "reference": "reference_chosen and reference_rejected",
    **{name: f"chosen_{name} and rejected_{name}" for name in ("tokens", *SIDE_ARGUMENTS)},
    **{name: name for name in ("kl_pairs", "history")},
}


class MissingData(ValueError):
    """A loss asked for something that the batch does not hold."""


@dataclass(frozen=True)
class Side:
    """One side of a batch: `n` preferred completions, or `n` dispreferred ones.

    `policy`, `reference` and `tokens` have shape `(n,)`; log-probs are summed over the completion's tokens, in nats.
    `needs` maps the name of every other declared need to its values, `(n, ...)`. The fields that begin with `token_`
    are per token, `(n, T)`: log-probs, the value head's estimate before each token, and the mask, true at tokens; the
    other fields are 0 at padding. `link` is the function that a modifier applies to log-ratios (see modifiers.py).
    `layers` is the dtype of the layers that computed the log-probs; None: that of the log-probs.
    """

    policy: Tensor
    reference: Tensor | None = None
    tokens: Tensor | None = None
    needs: Mapping[str, Tensor] = field(default_factory=dict)
    token_policy: Tensor | None = None
    token_reference: Tensor | None = None
    token_values: Tensor | None = None
    token_mask: Tensor | None = None
    name: str = "completions"
    link: Callable[[Tensor], Tensor] | None = None
    layers: torch.dtype | None = None

    def __len__(self) -> int:
        return self.policy.shape[0]

    def require(self, name: str) -> Tensor:
        """Return the values of a need by name; raise `MissingData` if the batch has none."""
        value = self.needs.get(name, getattr(self, name, None))
        if value is None:
            raise MissingData(
                f"this loss needs {name.replace('_', ' ')} for the {self.name} side, and the batch has none"
            )
        return value

    @property
    def outputs(self) -> Tensor:
        """The policy's differentiable outputs: log-probs, `(n,)`, or per-token log-probs and values, `(n, 2, T)`."""
        if self.token_values is None:
            return self.policy
        return torch.stack([self.require("token_policy"), self.token_values], dim=1)

    def with_outputs(self, outputs: Tensor) -> Side:
        """Return the side with its policy outputs replaced; the shape is that of `outputs`."""
        if self.token_values is None:
            return replace(self, policy=outputs)
        policy, values = outputs.unbind(1)
        return self.with_tokens(policy, values, self.require("token_mask"), self.token_reference)

    def with_tokens(self, policy: Tensor, values: Tensor, mask: Tensor, reference: Tensor | None = None) -> Side:
        """Return the side with these `(n, T)` per-token tensors and with their sums as its log-probs."""
        policy, values = policy.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
        reference = None if reference is None else reference.masked_fill(~mask, 0.0)
        return replace(
            self,
            policy=policy.sum(dim=1),
            reference=self.reference if reference is None else reference.sum(dim=1),
            tokens=mask.sum(dim=1),
            token_policy=policy,
            token_reference=reference,
            token_values=values,
            token_mask=mask,
        )

    @property
    def logratio(self) -> Tensor:
        """`(n,)` log pi(y|x) - log pi_ref(y|x), summed over the tokens of y."""
        ratio = self.policy - self.require("reference")
        return ratio if self.link is None else self.link(ratio)

    @property
    def rounding(self) -> Tensor:
        """`(n,)` nats: log-ratios (before any link) that differ by less than this cannot be told apart."""
        return rounding(self.policy, self.require("reference"), self.layers or self.policy.dtype)

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
class Lists:
    """Responses to `n` prompts, at most K per prompt; the tensors are `(n, K)`.

    `mask` is true where there is a response; the other fields are 0 elsewhere. Log-probs are summed over the
    completion's tokens, in nats; a higher score means a better response. `layers` is as in `Side`.
    """

    policy: Tensor
    reference: Tensor | None
    scores: Tensor
    mask: Tensor
    link: Callable[[Tensor], Tensor] | None = None
    layers: torch.dtype | None = None

    def __len__(self) -> int:
        return self.policy.shape[0]

    @property
    def outputs(self) -> Tensor:
        """The policy's differentiable outputs: log-probs, `(n, K)`."""
        return self.policy

    def with_outputs(self, outputs: Tensor) -> Lists:
        """Return the lists with their policy log-probs replaced."""
        return replace(self, policy=outputs)

    @property
    def logratio(self) -> Tensor:
        """`(n, K)` log pi(y|x) - log pi_ref(y|x), summed over the tokens of y; 0 where there is no response."""
        ratio = self.policy - self._reference
        return (ratio if self.link is None else self.link(ratio)).masked_fill(~self.mask, 0.0)

    @property
    def ahead(self) -> Tensor:
        """`(n, K, K)` bool: whether the policy ranks response j (last dimension) before response i.

        It has moved further from the reference towards j; log-ratios within rounding are tied, and ties rank by score.
        False where either response is absent.
        """
        ratio, size = self.policy - self._reference, self.rounding
        lead, tie = ratio[:, None, :] - ratio[:, :, None], size[:, None, :] + size[:, :, None]
        better = self.scores[:, None, :] > self.scores[:, :, None]
        return ((lead > tie) | ((lead >= -tie) & better)) & self.mask[:, None, :] & self.mask[:, :, None]

    @property
    def rounding(self) -> Tensor:
        """`(n, K)` nats: see `Side.rounding`."""
        return rounding(self.policy, self._reference, self.layers or self.policy.dtype)

    @property
    def _reference(self) -> Tensor:
        if self.reference is None:
            raise MissingData("this loss needs reference for its lists, and the batch has none")
        return self.reference


Part = Side | Lists


@dataclass(frozen=True)
class History:
    """The mean, in nats, and the number of the log-ratios of all responses in earlier steps."""

    mean: float = 0.0
    count: int = 0


@dataclass(frozen=True)
class PreferenceBatch:
    """Chosen and rejected completions of one effective batch.

    In paired data row `i` of both sides answers the same prompt. In unpaired data the sides are two independent
    sets and may differ in length. In listwise data `others`, `(n, K - 2)`, holds the further responses to each pair's
    prompt.

    `flipped` is true where a modifier assumes that the labels are the wrong way round (see `labelled`).

    The following belong to the whole effective batch and carry no gradient. `needs` maps names to values: `kl_pairs`,
    responses scored under prompts they do not answer, and `history`. `stopped` is this batch without gradient.
    """

    chosen: Side
    rejected: Side
    others: Lists | None = None
    needs: Mapping[str, Side | History] = field(default_factory=dict)
    stopped: PreferenceBatch | None = None
    flipped: bool = False

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
        chosen_density_ratios: Tensor | None = None,
        rejected_density_ratios: Tensor | None = None,
        chosen_second_reference: Tensor | None = None,
        rejected_second_reference: Tensor | None = None,
        chosen_confidence: Tensor | None = None,
        rejected_confidence: Tensor | None = None,
        chosen_augmented: Tensor | None = None,
        rejected_augmented: Tensor | None = None,
        others: Lists | None = None,
        kl_pairs: Side | None = None,
        history: History | None = None,
        layers: torch.dtype | None = None,
        needs: Mapping[str, tuple[Tensor, Tensor]] = MappingProxyType({}),
    ) -> PreferenceBatch:
        """Build a batch from 1-D tensors of summed log-probs and whatever else a loss needs.

        `prompt_embeddings`, `(n, d)`, is used for both sides of paired data; unpaired data takes one set per side.
        `needs` maps the names of further needs to their values on both sides, a pair of tensors `(n, ...)`.
        `layers` is the dtype of the layers that computed the log-probs, if it is not that of the log-probs.
        Half-precision input becomes fp32 (fp64 stays fp64). Raises `ValueError` for mismatched shapes, and for a need
        whose name is an argument or an attribute.
        """
        for need, pair in needs.items():
            if need in INSTEAD:
                raise ValueError(f"need {need!r}: pass it as {INSTEAD[need]}, not in needs")
            if problem := name_problem(need):
                raise ValueError(f"need {need!r}: {problem}")
            if not isinstance(pair, (tuple, list)) or len(pair) != 2 or any(values is None for values in pair):
                raise ValueError(f"need {need!r}: pass a pair of tensors, (chosen, rejected)")
        if prompt_embeddings is not None:
            if chosen_prompt_embeddings is not None or rejected_prompt_embeddings is not None:
                raise ValueError("pass either prompt_embeddings (paired data) or one set for each side, not both")
            chosen_prompt_embeddings = rejected_prompt_embeddings = prompt_embeddings
        named = {
            "scores": (chosen_scores, rejected_scores),
            "prompt_embeddings": (chosen_prompt_embeddings, rejected_prompt_embeddings),
            "density_ratios": (chosen_density_ratios, rejected_density_ratios),
            "second_reference": (chosen_second_reference, rejected_second_reference),
            "confidence": (chosen_confidence, rejected_confidence),
            "augmented": (chosen_augmented, rejected_augmented),
            **needs,
        }
        chosen, rejected = (
            replace(
                _side(name, policy, reference, tokens, {need: values[side] for need, values in named.items()}),
                layers=layers,
            )
            for side, (name, policy, reference, tokens) in enumerate(
                [
                    ("chosen", policy_chosen, reference_chosen, chosen_tokens),
                    ("rejected", policy_rejected, reference_rejected, rejected_tokens),
                ]
            )
        )
        if others is not None and (
            len(others) != len(chosen) or len(chosen) != len(rejected) or "scores" not in chosen.needs
        ):
            raise ValueError("further responses belong to pairs with scores, one list of them to each pair")
        of_batch = {"kl_pairs": kl_pairs, "history": history}
        return cls(chosen, rejected, others, {need: value for need, value in of_batch.items() if value is not None})

    @property
    def parts(self) -> tuple[Part, ...]:
        """Chosen, rejected and, if there are any, the other responses."""
        return (self.chosen, self.rejected) if self.others is None else (self.chosen, self.rejected, self.others)

    @property
    def lists(self) -> Lists:
        """All responses to each prompt, `(n, K)`: chosen, rejected, then the others.

        A pair is a list of two; without scores, 1 and 0 are used as its scores.
        """
        sides, others = (self.chosen, self.rejected), self.others
        policy = torch.stack([side.policy for side in sides], dim=1)
        with_reference = self.chosen.reference is not None
        reference = torch.stack([side.require("reference") for side in sides], dim=1) if with_reference else None
        if "scores" in self.chosen.needs:
            scores = torch.stack([side.require("scores") for side in sides], dim=1)
        else:
            scores = torch.stack([torch.ones_like(sides[0].policy), torch.zeros_like(sides[0].policy)], dim=1)
        mask = torch.ones_like(policy, dtype=torch.bool)
        if others is not None:
            policy, scores = torch.cat([policy, others.policy], dim=1), torch.cat([scores, others.scores], dim=1)
            mask = torch.cat([mask, others.mask], dim=1)
            if reference is not None and others.reference is not None:
                reference = torch.cat([reference, others.reference], dim=1)
        return Lists(policy, reference, scores, mask, self.chosen.link, self.chosen.layers)

    @property
    def logratio_margin(self) -> Tensor:
        """`(n,)` chosen minus rejected log-ratio of each pair (paired data): Delta in the papers' notation."""
        return self.chosen.logratio - self.rejected.logratio

    def labelled(self, margin: Tensor) -> Tensor:
        """Return a margin of chosen over rejected with the sign of its label: minus the margin in a flipped batch.

        A loss that passes its logit through here says what its label is about: label smoothing then reverses the logit,
        with any offset in it, and nothing else of the loss.
        """
        return -margin if self.flipped else margin

    def require(self, name: str) -> Any:
        """Return a need of the whole batch by name; raise `MissingData` if the batch has none."""
        value = self.needs.get(name, getattr(self, name, None))
        if value is None:
            raise MissingData(f"this loss needs {name}, and the batch has none")
        return value

    def with_policy(self, *outputs: Tensor) -> PreferenceBatch:
        """Return the same batch with other outputs of the policy, one tensor for each of its parts; `stopped` stays."""
        parts = [part.with_outputs(output) for part, output in zip(self.parts, outputs, strict=True)]
        return self._with_parts(parts)

    def changed(self, change: Callable[[tuple[Part, ...]], Iterable[Part]]) -> PreferenceBatch:
        """Return the batch with its parts replaced by `change(parts)`, and likewise those of `stopped`."""
        stopped = None if self.stopped is None else self.stopped.changed(change)
        return replace(self._with_parts(change(self.parts)), stopped=stopped)

    def _with_parts(self, parts: Iterable[Part]) -> PreferenceBatch:
        chosen, rejected, *others = parts
        rest = cast(Lists, others[0]) if others else self.others
        return replace(self, chosen=cast(Side, chosen), rejected=cast(Side, rejected), others=rest)

    def with_stopped(self) -> PreferenceBatch:
        """Return the batch with a copy of itself without gradient as `stopped`."""
        constant = self.with_policy(*(part.outputs.detach() for part in self.parts))
        return replace(self, stopped=constant)


ATTRIBUTES = {name for kind in (Side, Lists, PreferenceBatch) for name in {*dir(kind), *kind.__dataclass_fields__}}


def name_problem(need: str) -> str:
    """Return why a need may not have this name; "" if it may."""
    taken = f"a batch has {need!r} already, which a need of this name would hide from losses; choose another name"
    return taken if need in ATTRIBUTES else ""


def _side(
    name: str, policy: Tensor, reference: Tensor | None, tokens: Tensor | None, needs: Mapping[str, Tensor | None]
) -> Side:
    policy = _at_least_fp32(torch.as_tensor(policy))
    if policy.ndim != 1:
        raise ValueError(
            f"policy_{name} must be 1-D (one summed log-prob per completion), got shape {tuple(policy.shape)}"
        )

    def fitting(what: str, value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        value = torch.as_tensor(value)
        dimensions = DIMENSIONS.get(what)
        if value.ndim != (dimensions or value.ndim) or value.shape[:1] != policy.shape:
            wanted = f"be {dimensions}-D with" if dimensions else "have"
            raise ValueError(
                f"{what} of the {name} side must {wanted} {len(policy)} rows, got shape {tuple(value.shape)}"
            )
        if value.is_complex():
            raise ValueError(f"{what} of the {name} side must be real, got {str(value.dtype).removeprefix('torch.')}")
        return value if what == "tokens" else _at_least_fp32(value)

    checked = {need: fitting(need, value) for need, value in needs.items()}
    return Side(
        policy,
        fitting("reference", reference),
        fitting("tokens", tokens),
        {need: value for need, value in checked.items() if value is not None},
        name=name,
    )


def _at_least_fp32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
