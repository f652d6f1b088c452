"""The gradient of a loss over an effective batch, however that batch is cut and shared.

For losses that couple examples the effective batch is seen whole: first the log-probs of all of it, then
d loss / d log-prob, then one backward pass per forward pass with those as weights. Losses that do not couple examples
skip the first pass. Either way value and gradient are those of the whole batch in one piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from harness.training.batches import EffectiveBatch, micro_batches
from harness.training.policy import Policy
from harness.training.precompute import BatchSource, TokenLogProbs, score
from losses import Loss, PreferenceBatch


class StartError(RuntimeError):
    """At step 0 the policy is not its reference, or the loss is not its declared start value."""


# Largest |log-ratio| of a sequence, and relative error of the loss, that rounding explains at step 0.
START_TOLERANCE = {torch.float32: (1e-2, 1e-3), torch.bfloat16: (1.0, 0.1)}


@dataclass
class PreferenceObjective:
    """A loss with its settings, bound to a policy, its reference and the token data.

    `embeddings` is `(examples, d)`, the prompts of the training examples, where the loss needs them.
    """

    policy: Policy
    loss: Loss
    settings: Mapping[str, object]
    batches: BatchSource
    reference: TokenLogProbs
    embeddings: np.ndarray | None
    accelerator: Accelerator
    sequences_forwarded: int = 0  # in training, over all processes: a two-pass loss needs twice as many

    def backward(self, batch: EffectiveBatch) -> dict[str, float | None]:
        """Add the gradient of the batch's mean loss to the policy's; return the batch's metrics.

        In a run of several processes each adds the gradient of its share: their sum is the batch's.
        """
        rows = batch.chosen + batch.rejected
        passes = self._my_passes(batch, rows)
        self.policy.train()
        whole = len(passes) == 1 and self.accelerator.num_processes == 1
        if whole or not self.loss.couples_examples:
            logps = self._backward_in_one(batch, rows, passes)
        else:
            logps = self._backward_in_two(batch, rows, passes)
            self.sequences_forwarded += len(rows)
        self.sequences_forwarded += len(rows)
        return self._metrics(batch, logps)

    def check_start(self, batch: EffectiveBatch) -> None:
        """Raise `StartError` unless log-ratios are 0 and the loss is its start value, within rounding."""
        rows = batch.chosen + batch.rejected
        self.policy.eval()
        logps, _ = self._forward_all(rows, self._my_passes(batch, rows))
        tolerance, relative = START_TOLERANCE[self.policy.compute_dtype]
        worst = (logps - self.reference.sums(rows).to(logps.device)).abs().max().item()
        if not worst <= tolerance:
            raise StartError(f"at step 0 the policy is not its reference: a log-ratio is {worst:.3g} nats, not 0")
        expected = self.loss.start(self.settings)
        value = self._rows(batch, logps).mean().item()
        if expected is not None and not abs(value - expected) <= relative * max(1.0, abs(expected)):
            raise StartError(
                f"at step 0 the loss is {value:.6g}; {self.loss.name} declares a start value of {expected:.6g}"
            )

    def evaluate(
        self, batches: Sequence[EffectiveBatch], everything: EffectiveBatch, *, paired: bool
    ) -> dict[str, float | None]:
        """Return metrics in eval mode: the loss over `batches`, the rest over `everything` (true pairs if `paired`).

        `kl` estimates KL(reference || policy) of a completion, in nats, by the sum over its tokens of
        ratio - 1 - log ratio, with the data's completions standing for the reference's samples.
        """
        (scored,) = score([self.policy], self.batches)
        with torch.no_grad():
            values = [self._rows(b, scored.sums(b.chosen + b.rejected)) for b in batches]
            view = self._preference_batch(everything, scored.sums(everything.chosen + everything.rejected))
        ratio = scored.values.astype(np.float64) - self.reference.values
        return {
            "loss": torch.cat(values).mean().item(),
            **preference_metrics(view, paired=paired),
            "kl": float((np.expm1(ratio) - ratio).sum() / len(self.batches.sequences)),
        }

    def _my_passes(self, batch: EffectiveBatch, rows: Sequence[int]) -> list[list[int]]:
        """Return the forward passes of this process, as positions in `rows`; pairs stay together."""
        wins = len(batch.chosen)
        groups = [[i, wins + i] for i in range(wins)] if self.loss.data == "paired" else [[i] for i in range(len(rows))]
        lengths = [len(self.batches.sequences[i]) for i in rows]
        groups.sort(key=lambda group: max(lengths[i] for i in group))  # so that every process gets as many tokens
        mine = groups[self.accelerator.process_index :: self.accelerator.num_processes]
        return micro_batches(mine, lengths, self.batches.budget)

    def _forward(self, rows: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Return `(len(positions),)` summed log-probs."""
        batch = self.batches.batch([rows[i] for i in positions], self.policy)
        flat = self.policy(batch)
        return flat.new_zeros(len(positions)).index_add(0, batch.row, flat)

    @torch.no_grad()
    def _forward_all(self, rows: Sequence[int], passes: list[list[int]]) -> tuple[Tensor, list]:
        """Return the log-probs of all rows, `(len(rows),)`, and the random state before each of this process's passes."""
        logps, states = torch.zeros(len(rows), device=self.policy.device), []
        for positions in passes:
            states.append(_random_state(self.policy.device))
            logps[positions] = self._forward(rows, positions)
        return self.accelerator.reduce(logps, "sum"), states

    def _backward_in_one(self, batch: EffectiveBatch, rows: Sequence[int], passes: list[list[int]]) -> Tensor:
        """Forward and backward each pass once: enough for a loss that does not couple examples."""
        # What the mean is over: a coupled loss is here with the whole batch in one pass, and counts its own rows.
        count = None if self.loss.couples_examples else len(batch.chosen) if self.loss.data == "paired" else len(rows)
        logps = torch.zeros(len(rows), device=self.policy.device)
        for positions in passes:
            summed = self._forward(rows, positions)
            part = batch if count is None else _part(batch, positions)
            order = torch.tensor(np.argsort(positions, kind="stable"), device=summed.device)
            values = self._rows(part, summed[order])
            (values.sum() / (count or len(values))).backward()
            logps[positions] = summed.detach()
        return self.accelerator.reduce(logps, "sum")

    def _backward_in_two(self, batch: EffectiveBatch, rows: Sequence[int], passes: list[list[int]]) -> Tensor:
        """All log-probs first, then each pass again with d loss / d log-prob as weights."""
        logps, states = self._forward_all(rows, passes)
        logps.requires_grad_()
        (weights,) = torch.autograd.grad(self._rows(batch, logps).mean(), logps)
        for positions, state in zip(passes, states, strict=True):
            _set_random_state(self.policy.device, state)  # dropout must fall alike in both forward passes
            (self._forward(rows, positions) * weights[positions]).sum().backward()
        return logps.detach()

    def _rows(self, batch: EffectiveBatch, logps: Tensor) -> Tensor:
        """Return the loss's rows for log-probs in the order chosen, rejected."""
        return self.loss(self._preference_batch(batch, logps), **self.settings)

    def _preference_batch(self, batch: EffectiveBatch, logps: Tensor) -> PreferenceBatch:
        device, wins = logps.device, len(batch.chosen)

        def tokens(rows: Sequence[int]) -> Tensor:
            return torch.tensor([len(self.batches.sequences[i].completion) for i in rows], device=device)

        def embeddings(examples: Sequence[int]) -> Tensor | None:
            return (
                None
                if self.embeddings is None
                else torch.from_numpy(self.embeddings[np.asarray(examples, dtype=int)]).to(device)
            )

        return PreferenceBatch.from_logps(
            logps[:wins],
            logps[wins:],
            self.reference.sums(batch.chosen).to(device),
            self.reference.sums(batch.rejected).to(device),
            chosen_tokens=tokens(batch.chosen),
            rejected_tokens=tokens(batch.rejected),
            chosen_prompt_embeddings=embeddings(batch.chosen_examples),
            rejected_prompt_embeddings=embeddings(batch.rejected_examples),
        )

    @torch.no_grad()
    def _metrics(self, batch: EffectiveBatch, logps: Tensor) -> dict[str, float | None]:
        view = self._preference_batch(batch, logps)
        return {
            "loss": self._rows(batch, logps).mean().item(),
            **preference_metrics(view, paired=self.loss.data == "paired"),
        }


def preference_metrics(batch: PreferenceBatch, *, paired: bool) -> dict[str, float | None]:
    """Return mean log-ratios in nats and, for true pairs, their margin and how often chosen is ahead (a tie is half)."""
    chosen, rejected = batch.chosen.logratio, batch.rejected.logratio
    margin = chosen - rejected if paired else None
    return {
        "chosen_logratio": _mean(chosen),
        "rejected_logratio": _mean(rejected),
        "margin": _mean(margin),
        "accuracy": None if margin is None else _mean((margin > 0).double() + 0.5 * (margin == 0).double()),
    }


def _part(batch: EffectiveBatch, positions: Sequence[int]) -> EffectiveBatch:
    """Return the effective batch cut down to some positions (of chosen, then rejected), in ascending order."""
    wins = len(batch.chosen)
    chosen = sorted(i for i in positions if i < wins)
    rejected = sorted(i - wins for i in positions if i >= wins)
    return EffectiveBatch(
        [batch.chosen[i] for i in chosen],
        [batch.rejected[i] for i in rejected],
        [batch.chosen_examples[i] for i in chosen],
        [batch.rejected_examples[i] for i in rejected],
    )


def _mean(values: Tensor | None) -> float | None:
    return None if values is None or len(values) == 0 else values.double().mean().item()


def _random_state(device: torch.device):
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(device: torch.device, state) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
