"""The gradient of a loss over an effective batch, independent of how it is split into passes and processes.

Losses that couple examples see the effective batch as a whole: first the log-probs of all rows are computed, then
d loss / d log-prob, then the backward pass of each forward pass with these as weights. Passes that do not fit into
memory together are run forward a second time. Losses that do not couple examples are computed pass by pass. Value and
gradient are those of the whole batch in both cases.
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
from harness.training.optimizer import Backward
from harness.training.randomness import random_state, set_random_state
from harness.training.supply import Supply, Value, log_probs
from harness.training.update import plain_backward
from losses.batch import History, PreferenceBatch
from losses.spec import Loss

Computed = Mapping[str, Value]  # the needs that are computed anew at each step, by name


class StartError(RuntimeError):
    """At step 0 the policy differs from its reference, or the loss from its declared start value."""


# Largest |log-ratio| of a sequence, in nats, and relative error of the loss that rounding can cause at step 0.
START_TOLERANCE = {torch.float32: (1e-2, 1e-3), torch.bfloat16: (1.0, 0.1)}


@dataclass
class PreferenceObjective:
    """A loss with its settings, bound to a policy in training and to the data and needs of the loss."""

    training: Training
    loss: Loss
    settings: Mapping[str, object]
    supply: Supply

    @property
    def sequences_forwarded(self) -> int:
        """The sequences forwarded in training so far, over all processes; coupled losses need up to twice as many."""
        return self.training.kept["sequences_forwarded"]

    def backward(self, batch: EffectiveBatch, back: Backward = plain_backward) -> dict[str, float | None]:
        """Add the gradient of the batch's mean loss to the policy's, through `back`; return the batch's metrics.

        With several processes, each adds the gradient of its share; the sum is the gradient of the batch.
        """
        rows, computed, kept = batch.rows, self._computed(batch), self.training.kept
        passes = self._passes(batch)
        self.training.policy.train()
        backward = self._backward_as_a_whole if self.loss.couples_examples else self._backward_by_parts
        outputs, loss = backward(batch, passes, computed, back)
        kept["examples"] += len(rows)
        kept["sequences_forwarded"] += len(rows) + sum(len(v) for v in computed.values() if not isinstance(v, History))
        with torch.no_grad():
            view = self._view(batch, outputs, computed)
            for need in self.supply.steps.values():
                need.after(self.training, view)
            metrics = fetched({"loss": loss, **preference_metrics(view, paired=self.loss.data != "unpaired")})
        return {**metrics, "tokens": sum(self.supply.source.tokens([row]) for row in rows)}

    def check_start(self, batch: EffectiveBatch) -> None:
        """Raise `StartError` unless log-ratios are 0 and the loss is its start value, within rounding."""
        computed = self._computed(batch)
        self.training.policy.eval()
        outputs = self._all_outputs(batch)
        tolerance, relative = START_TOLERANCE[self.training.policy.compute_dtype]
        worst = (log_probs(outputs).cpu() - self.supply.reference.sums(batch.rows)).abs().max().item()
        if not worst <= tolerance:
            raise StartError(f"at step 0 the policy is not its reference: a log-ratio is {worst:.3g} nats, not 0")
        expected = self.loss.start(self.settings)
        value = self._rows(batch, outputs, computed).mean().item()
        if expected is not None and not abs(value - expected) <= relative * max(1.0, abs(expected)):
            raise StartError(
                f"at step 0 the loss is {value:.6g}; {self.loss.name} declares a start value of {expected:.6g}"
            )

    def evaluate(
        self, batches: Sequence[EffectiveBatch], everything: EffectiveBatch, *, paired: bool
    ) -> dict[str, float | None]:
        """Return metrics in eval mode: the loss over `batches`, the rest over `everything` (true pairs if `paired`).

        `kl` estimates KL(reference || policy) of a response, in nats, as the sum over its tokens of
        ratio - 1 - log ratio, with the data's responses in place of samples from the reference.
        """
        (scored,) = self.supply.source.score([self.training.policy])
        with torch.no_grad():

            def sums(batch: EffectiveBatch) -> Tensor:
                return scored.sums(batch.rows).to(self.training.policy.device)

            # `score` returns no values; if the loss needs them, the policy is run again
            of = self._all_outputs if self._by_token else sums
            values = [self._rows(b, of(b), self._computed(b)) for b in batches]
            view = self._view(everything, sums(everything))
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
    def _computed(self, batch: EffectiveBatch) -> Computed:
        """Return the needs that each step computes with the current policy, in eval mode."""
        self.training.policy.eval()
        return {need: step.before(self.training, batch) for need, step in self.supply.steps.items()}

    def _passes(self, batch: EffectiveBatch) -> list[list[int]]:
        """Return this process's forward passes as positions in the batch's rows; pairs and lists stay together."""
        return self.training.share(self.supply.source, batch.rows, batch.groups())

    def _all_outputs(self, batch: EffectiveBatch) -> Tensor:
        """Return the policy's outputs for all rows of a batch, without gradient."""
        passes = self._passes(batch)
        return self._forward_all(batch.rows, passes, again=len(passes))[0]

    def _forward(self, rows: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Return the policy's outputs for some rows, padded to the width of all rows (see `Source.outputs`)."""
        # a sharded policy needs a pass from every process, even from one without rows
        part = [rows[i] for i in positions] or rows[:1]
        outputs = self.supply.source.outputs(self.training.policy, part, by_token=self._by_token)[: len(positions)]
        return pad(outputs, (0, self._width(rows) - outputs.shape[2])) if self._by_token else outputs

    def _zeros(self, rows: Sequence[int]) -> Tensor:
        """Return zeros in the shape of the policy's outputs for all rows."""
        shape = (2, self._width(rows)) if self._by_token else ()
        return torch.zeros((len(rows), *shape), device=self.training.policy.device)

    def _width(self, rows: Sequence[int]) -> int:
        return int(self.supply.source.lengths(rows).max())

    def _forward_all(
        self, rows: Sequence[int], passes: list[list[int]], again: int
    ) -> tuple[Tensor, list[Tensor], list[dict[str, Tensor]]]:
        """Return the policy's outputs for all rows, those of this process's passes from number `again` on with their
        graphs, and the random state before each pass.
        """
        outputs, graphs, states = self._zeros(rows), [], []
        for number, positions in enumerate(passes):
            states.append(random_state(self.training.policy.device))
            with torch.set_grad_enabled(number >= again):
                of_pass = self._forward(rows, positions)
            outputs[positions] = of_pass.detach()
            graphs += [of_pass] if number >= again else []
        return self.training.accelerator.reduce(outputs, "sum"), graphs, states

    def _backward_by_parts(
        self, batch: EffectiveBatch, passes: list[list[int]], computed: Computed, back: Backward
    ) -> tuple[Tensor, Tensor]:
        """Run each pass forward and backward once, for a loss that does not couple examples.

        Return the policy's outputs for all rows and the batch's mean loss.
        """
        rows, count = batch.rows, len(batch.groups())
        outputs, loss = self._zeros(rows), torch.zeros((), device=self.training.policy.device)
        for number, positions in enumerate(passes, start=1):
            values = of_pass = self._forward(rows, positions)
            if positions:
                order = torch.tensor(np.argsort(positions, kind="stable"), device=of_pass.device)
                values = self._rows(batch.part(positions), of_pass[order], _part(computed, positions))
            share = values.sum() / count
            back(share, number == len(passes))
            outputs[positions] = of_pass.detach()
            loss += share.detach()
        return tuple(self.training.accelerator.reduce((outputs, loss), "sum"))

    def _backward_as_a_whole(
        self, batch: EffectiveBatch, passes: list[list[int]], computed: Computed, back: Backward
    ) -> tuple[Tensor, Tensor]:
        """Compute all outputs, then run each pass backward with d loss / d output as weights.

        As many of the last passes as fit into the budget together keep their graphs; the others are run forward again.
        Return the policy's outputs for all rows and the batch's mean loss.
        """
        rows, device = batch.rows, self.training.policy.device
        again = self._passes_to_repeat(rows, passes)
        outputs, graphs, states = self._forward_all(rows, passes, again)
        after = random_state(device)
        outputs.requires_grad_()
        loss = self._rows(batch, outputs, computed).mean()
        (weights,) = torch.autograd.grad(loss, outputs)
        if graphs:
            held = torch.zeros((), device=device)
            for graph, positions in zip(graphs, passes[again:], strict=True):
                held = held + (graph * weights[positions]).sum()
            back(held, again == 0)
            del held
        graphs.clear()
        for number, (positions, state) in enumerate(zip(passes[:again], states, strict=False), start=1):
            set_random_state(device, state)  # both forward passes must drop the same units
            back((self._forward(rows, positions) * weights[positions]).sum(), number == again)
        set_random_state(device, after)
        repeated = torch.tensor(sum(map(len, passes[:again])), device=outputs.device)
        self.training.kept["sequences_forwarded"] += int(self.training.accelerator.reduce(repeated, "sum"))
        return outputs.detach(), loss.detach()

    def _passes_to_repeat(self, rows: Sequence[int], passes: list[list[int]]) -> int:
        """Return how many passes must run twice so that the graphs held at once stay within the budget.

        If all processes must make equally many passes, it is all but the last in each of them.
        """
        if self.training.policy.together:
            return len(passes) - 1
        source, held = self.supply.source, 0
        for number in reversed(range(len(passes))):
            held += source.tokens([rows[i] for i in passes[number]])
            if held > source.budget and number < len(passes) - 1:
                return number + 1
        return 0

    def _rows(self, batch: EffectiveBatch, outputs: Tensor, computed: Computed) -> Tensor:
        """Return the loss's rows, given the policy's outputs in the order of the batch's rows."""
        return self.loss(self._view(batch, outputs, computed), **self.settings)

    def _view(self, batch: EffectiveBatch, outputs: Tensor, computed: Computed | None = None) -> PreferenceBatch:
        return self.supply.preference_batch(batch, outputs, computed, self.training.policy.compute_dtype)


def _part(computed: Computed, positions: Sequence[int]) -> Computed:
    """Return the values at these positions in the batch's rows, in the original order."""
    order = sorted(positions)
    return {need: value[order] if isinstance(value, Tensor) else value for need, value in computed.items()}


def preference_metrics(batch: PreferenceBatch, *, paired: bool) -> dict[str, Tensor | None]:
    """Return mean log-ratios in nats and, for true pairs, their margin and accuracy.

    Accuracy is the share of pairs with a margin above 0; one that is 0 within rounding counts 1/2, so that a policy
    that is its reference has an accuracy of 1/2 however the batch is cut. They stay on the device of the log-probs; a
    metric without rows is None.
    """
    chosen, rejected = batch.chosen.logratio, batch.rejected.logratio
    margin = right = None
    if paired:
        margin, tie = chosen - rejected, batch.chosen.rounding + batch.rejected.rounding
        right = (margin > tie).double() + 0.5 * (margin.abs() <= tie).double()
    return {
        "chosen_logratio": _mean(chosen),
        "rejected_logratio": _mean(rejected),
        "margin": _mean(margin),
        "accuracy": _mean(right),
    }


def fetched(metrics: Mapping[str, Tensor | None]) -> dict[str, float | None]:
    """Return 0-d tensors as numbers, in a single transfer, so that each step waits for the device only once."""
    there = {name: value for name, value in metrics.items() if value is not None}
    values = torch.stack([value.double() for value in there.values()]).tolist()
    return {**dict.fromkeys(metrics), **dict(zip(there, values, strict=True))}


def _mean(values: Tensor | None) -> Tensor | None:
    return None if values is None or len(values) == 0 else values.double().mean()
