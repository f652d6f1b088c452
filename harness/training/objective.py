"""The gradient of a loss over an effective batch, however that batch is cut and shared.

For losses that couple examples the effective batch is seen whole: first the log-probs of all of it, then
d loss / d log-prob, then backward through each forward pass with those as weights; what does not fit into memory at
once is run forward a second time for that. Losses that do not couple examples go pass by pass. Either way value and
gradient are those of the whole batch in one piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.training.batch import EffectiveBatch
from harness.training.forward import Training
from harness.training.randomness import random_state, set_random_state
from harness.training.supply import Supply, Value, log_probs
from harness.training.update import Backward, plain_backward
from losses import History, Loss, PreferenceBatch

Given = Mapping[str, Value]


class StartError(RuntimeError):
    """At step 0 the policy is not its reference, or the loss is not its declared start value."""


# Largest |log-ratio| of a sequence, and relative error of the loss, that rounding explains at step 0.
START_TOLERANCE = {torch.float32: (1e-2, 1e-3), torch.bfloat16: (1.0, 0.1)}


@dataclass
class PreferenceObjective:
    """A loss with its settings, bound to a policy in training and to the data with all else that the loss needs."""

    training: Training
    loss: Loss
    settings: Mapping[str, object]
    supply: Supply

    @property
    def sequences_forwarded(self) -> int:
        """How many in training so far, over all processes: a coupled loss needs up to twice as many."""
        return self.training.kept["sequences_forwarded"]

    def backward(self, batch: EffectiveBatch, back: Backward = plain_backward) -> dict[str, float | None]:
        """Add the gradient of the batch's mean loss to the policy's, through `back`; return the batch's metrics.

        In a run of several processes each adds the gradient of its share: their sum is the batch's.
        """
        rows, given, kept = batch.rows, self._given(batch), self.training.kept
        passes = self._passes(batch)
        self.training.policy.train()
        backward = self._backward_as_a_whole if self.loss.couples_examples else self._backward_by_parts
        outputs, loss = backward(batch, passes, given, back)
        kept["examples"] += len(rows)
        kept["sequences_forwarded"] += len(rows) + sum(len(v) for v in given.values() if not isinstance(v, History))
        with torch.no_grad():
            view = self.supply.preference_batch(batch, outputs, given)
            for need in self.supply.steps.values():
                need.after(self.training, view)
            metrics = fetched({"loss": loss, **preference_metrics(view, paired=self.loss.data != "unpaired")})
        return {**metrics, "tokens": sum(self.supply.source.tokens([row]) for row in rows)}

    def check_start(self, batch: EffectiveBatch) -> None:
        """Raise `StartError` unless log-ratios are 0 and the loss is its start value, within rounding."""
        given = self._given(batch)
        self.training.policy.eval()
        outputs = self._all_outputs(batch)
        tolerance, relative = START_TOLERANCE[self.training.policy.compute_dtype]
        worst = (log_probs(outputs).cpu() - self.supply.reference.sums(batch.rows)).abs().max().item()
        if not worst <= tolerance:
            raise StartError(f"at step 0 the policy is not its reference: a log-ratio is {worst:.3g} nats, not 0")
        expected = self.loss.start(self.settings)
        value = self._rows(batch, outputs, given).mean().item()
        if expected is not None and not abs(value - expected) <= relative * max(1.0, abs(expected)):
            raise StartError(
                f"at step 0 the loss is {value:.6g}; {self.loss.name} declares a start value of {expected:.6g}"
            )

    def evaluate(
        self, batches: Sequence[EffectiveBatch], everything: EffectiveBatch, *, paired: bool
    ) -> dict[str, float | None]:
        """Return metrics in eval mode: the loss over `batches`, the rest over `everything` (true pairs if `paired`).

        `kl` estimates KL(reference || policy) of a response, in nats, by the sum over its tokens of
        ratio - 1 - log ratio, with the data's responses standing for the reference's samples.
        """
        (scored,) = self.supply.source.score([self.training.policy])
        with torch.no_grad():
            # what was scored has no values: where the loss needs them, the policy runs again
            of = self._all_outputs if self._by_token else lambda b: scored.sums(b.rows)
            values = [self._rows(b, of(b), self._given(b)) for b in batches]
            view = self.supply.preference_batch(everything, scored.sums(everything.rows))
        ratio = scored.values.astype(np.float64) - self.supply.reference.values
        return {
            "loss": torch.cat(values).mean().item(),
            **fetched(preference_metrics(view, paired=paired)),
            "kl": float((np.expm1(ratio) - ratio).sum() / len(scored)),
        }

    @property
    def _by_token(self) -> bool:
        return "token_values" in self.loss.needs

    @torch.no_grad()
    def _given(self, batch: EffectiveBatch) -> Given:
        """Return what the loss needs of the batch beside its log-probs, from the policy as it is, in eval mode."""
        self.training.policy.eval()
        return {need: step.before(self.training, batch) for need, step in self.supply.steps.items()}

    def _passes(self, batch: EffectiveBatch) -> list[list[int]]:
        """Return the forward passes of this process, as positions in the rows; pairs and lists stay together."""
        return self.training.share(self.supply.source, batch.rows, batch.groups())

    def _all_outputs(self, batch: EffectiveBatch) -> Tensor:
        """Return the policy's outputs for all rows of a batch, without gradient."""
        passes = self._passes(batch)
        return self._forward_all(batch.rows, passes, again=len(passes))[0]

    def _forward(self, rows: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Return the policy's outputs for some of the rows, as wide as those of all of them (see `Source.outputs`)."""
        # the other processes' pass through a sharded policy needs this one, also where it has no rows
        part = [rows[i] for i in positions] or rows[:1]
        outputs = self.supply.source.outputs(self.training.policy, part, by_token=self._by_token)[: len(positions)]
        return pad(outputs, (0, self._width(rows) - outputs.shape[2])) if self._by_token else outputs

    def _zeros(self, rows: Sequence[int]) -> Tensor:
        """Return the place for the policy's outputs of all rows."""
        shape = (2, self._width(rows)) if self._by_token else ()
        return torch.zeros((len(rows), *shape), device=self.training.policy.device)

    def _width(self, rows: Sequence[int]) -> int:
        return int(self.supply.source.lengths(rows).max())

    def _forward_all(
        self, rows: Sequence[int], passes: list[list[int]], again: int
    ) -> tuple[Tensor, list[Tensor], list[dict[str, Tensor]]]:
        """Return the policy's outputs for all rows; those of this process's passes from number `again` on, with their
        graphs; and the random state before each pass."""
        outputs, graphs, states = self._zeros(rows), [], []
        for number, positions in enumerate(passes):
            states.append(random_state(self.training.policy.device))
            with torch.set_grad_enabled(number >= again):
                found = self._forward(rows, positions)
            outputs[positions] = found.detach()
            graphs += [found] if number >= again else []
        return self.training.accelerator.reduce(outputs, "sum"), graphs, states

    def _backward_by_parts(
        self, batch: EffectiveBatch, passes: list[list[int]], given: Given, back: Backward
    ) -> tuple[Tensor, Tensor]:
        """Forward and backward each pass once: enough for a loss that does not couple examples.

        Return the policy's outputs for all rows and the batch's mean loss.
        """
        rows, count = batch.rows, len(batch.groups())
        outputs, loss = self._zeros(rows), torch.zeros((), device=self.training.policy.device)
        for number, positions in enumerate(passes, start=1):
            values = found = self._forward(rows, positions)
            if positions:
                order = torch.tensor(np.argsort(positions, kind="stable"), device=found.device)
                values = self._rows(batch.part(positions), found[order], _part(given, positions))
            share = values.sum() / count
            back(share, number == len(passes))
            outputs[positions] = found.detach()
            loss += share.detach()
        return tuple(self.training.accelerator.reduce((outputs, loss), "sum"))

    def _backward_as_a_whole(
        self, batch: EffectiveBatch, passes: list[list[int]], given: Given, back: Backward
    ) -> tuple[Tensor, Tensor]:
        """All outputs first, then back through each pass with d loss / d output as weights.

        The last passes, as many as are within the budget together, keep their graphs; the others run again.
        """
        rows, device = batch.rows, self.training.policy.device
        again = self._passes_to_repeat(rows, passes)
        outputs, graphs, states = self._forward_all(rows, passes, again)
        after = random_state(device)
        outputs.requires_grad_()
        loss = self._rows(batch, outputs, given).mean()
        (weights,) = torch.autograd.grad(loss, outputs)
        if graphs:
            held = [(graph * weights[positions]).sum() for graph, positions in zip(graphs, passes[again:], strict=True)]
            back(sum(held[1:], start=held[0]), again == 0)
            del held
        graphs.clear()
        for number, (positions, state) in enumerate(zip(passes[:again], states, strict=False), start=1):
            set_random_state(device, state)  # dropout must fall alike in both forward passes
            back((self._forward(rows, positions) * weights[positions]).sum(), number == again)
        set_random_state(device, after)
        repeated = torch.tensor(sum(map(len, passes[:again])), device=outputs.device)
        self.training.kept["sequences_forwarded"] += int(self.training.accelerator.reduce(repeated, "sum"))
        return outputs.detach(), loss.detach()

    def _passes_to_repeat(self, rows: Sequence[int], passes: list[list[int]]) -> int:
        """Return how many passes have to run twice, so that no more than the budget is held at once.

        Where the processes go together: all but the last, in each of them.
        """
        if self.training.policy.together:
            return len(passes) - 1
        source, held = self.supply.source, 0
        for number in reversed(range(len(passes))):
            held += source.tokens([rows[i] for i in passes[number]])
            if held > source.budget and number < len(passes) - 1:
                return number + 1
        return 0

    def _rows(self, batch: EffectiveBatch, outputs: Tensor, given: Given) -> Tensor:
        """Return the loss's rows for outputs of the policy in the order of the batch's rows."""
        return self.loss(self.supply.preference_batch(batch, outputs, given), **self.settings)


def _part(given: Given, positions: Sequence[int]) -> Given:
    """Return what belongs to a part of the batch, given by positions in its rows; the order stays."""
    order = sorted(positions)
    return {need: value[order] if isinstance(value, Tensor) else value for need, value in given.items()}


def preference_metrics(batch: PreferenceBatch, *, paired: bool) -> dict[str, Tensor | None]:
    """Return mean log-ratios in nats and, for true pairs, their margin and how often chosen is ahead (a tie is half).

    They stay where the log-probs are; what no row has is None.
    """
    chosen, rejected = batch.chosen.logratio, batch.rejected.logratio
    margin = chosen - rejected if paired else None
    return {
        "chosen_logratio": _mean(chosen),
        "rejected_logratio": _mean(rejected),
        "margin": _mean(margin),
        "accuracy": None if margin is None else _mean((margin > 0).double() + 0.5 * (margin == 0).double()),
    }


def fetched(metrics: Mapping[str, Tensor | None]) -> dict[str, float | None]:
    """Return 0-d tensors as numbers, brought from their device all at once: that waits for it once a step."""
    there = {name: value for name, value in metrics.items() if value is not None}
    values = torch.stack([value.double() for value in there.values()]).tolist()
    return {**dict.fromkeys(metrics), **dict(zip(there, values, strict=True))}


def _mean(values: Tensor | None) -> Tensor | None:
    return None if values is None or len(values) == 0 else values.double().mean()
