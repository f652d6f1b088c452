"""The gradient of a loss over an effective batch, however that batch is cut and shared.

For losses that couple examples the effective batch is seen whole: first the log-probs of all of it, then
d loss / d log-prob, then backward through each forward pass with those as weights; what does not fit into memory at once
is run forward a second time for that. Losses that do not couple examples go pass by pass. Either way value and gradient are those of the whole batch in one piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from harness.backbones.language_model.policy import Policy
from harness.backbones.language_model.rows import micro_batches, padded_tokens
from harness.backbones.language_model.scoring import BatchSource, score
from harness.backbones.language_model.token_values import by_row, log_probs
from harness.training.batch import EffectiveBatch
from harness.training.randomness import random_state, set_random_state
from harness.training.sharding import equal_passes
from harness.training.supply import Constants, Supply
from harness.training.update import Backward, plain_backward
from losses import History, Loss, PreferenceBatch, Side


class StartError(RuntimeError):
    """At step 0 the policy is not its reference, or the loss is not its declared start value."""


# Largest |log-ratio| of a sequence, and relative error of the loss, that rounding explains at step 0.
START_TOLERANCE = {torch.float32: (1e-2, 1e-3), torch.bfloat16: (1.0, 0.1)}


@dataclass
class PreferenceObjective:
    """A loss with its settings, bound to a policy and to the token data with all else that the loss needs.

    `kept` is what changes from step to step besides the policy, as JSON values: a checkpoint holds it. `history` is
    the mean and the number of the log-ratios so far.
    """

    policy: Policy
    loss: Loss
    settings: Mapping[str, object]
    supply: Supply
    accelerator: Accelerator
    kept: dict = field(default_factory=lambda: {"sequences_forwarded": 0, "history": [0.0, 0]})

    @property
    def sequences_forwarded(self) -> int:
        """How many in training so far, over all processes: a coupled loss needs up to twice as many."""
        return self.kept["sequences_forwarded"]

    def backward(self, batch: EffectiveBatch, back: Backward = plain_backward) -> dict[str, float | None]:
        """Add the gradient of the batch's mean loss to the policy's, through `back`; return the batch's metrics.

        In a run of several processes each adds the gradient of its share: their sum is the batch's.
        """
        rows, given = batch.rows, self._constants(batch)
        passes = self._my_passes(batch, rows)
        self.policy.train()
        backward = self._backward_as_a_whole if self.loss.couples_examples else self._backward_by_parts
        outputs, loss = backward(batch, rows, passes, given, back)
        constants = (given.kl_pairs, given.confidence, given.augmented)
        self.kept["sequences_forwarded"] += len(rows) + sum(len(c) for c in constants if c is not None)
        if given.history is not None:
            self._remember(rows, log_probs(outputs))
        with torch.no_grad():
            view = self.supply.preference_batch(batch, outputs, given)
            return fetched({"loss": loss, **preference_metrics(view, paired=self.loss.data != "unpaired")})

    def check_start(self, batch: EffectiveBatch) -> None:
        """Raise `StartError` unless log-ratios are 0 and the loss is its start value, within rounding."""
        rows, given = batch.rows, self._constants(batch)
        self.policy.eval()
        outputs = self._outputs(batch)
        tolerance, relative = START_TOLERANCE[self.policy.compute_dtype]
        worst = (log_probs(outputs).cpu() - self.supply.reference.sums(rows)).abs().max().item()
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

        `kl` estimates KL(reference || policy) of a completion, in nats, by the sum over its tokens of
        ratio - 1 - log ratio, with the data's completions standing for the reference's samples.
        """
        (scored,) = score([self.policy], self.supply.batches)
        with torch.no_grad():
            # what was scored has no values: where the loss needs them, the policy runs again
            of = self._outputs if self._by_token else lambda b: scored.sums(b.rows)
            values = [self._rows(b, of(b), self._constants(b)) for b in batches]
            view = self.supply.preference_batch(everything, scored.sums(everything.rows))
        ratio = scored.values.astype(np.float64) - self.supply.reference.values
        return {
            "loss": torch.cat(values).mean().item(),
            **fetched(preference_metrics(view, paired=paired)),
            "kl": float((np.expm1(ratio) - ratio).sum() / len(self.supply.batches.sequences)),
        }

    def _my_passes(self, batch: EffectiveBatch, rows: Sequence[int]) -> list[list[int]]:
        """Return the forward passes of this process, as positions in `rows`; pairs and lists stay together."""
        return self._share(self.supply.batches, rows, batch.groups())

    def _share(self, source: BatchSource, rows: Sequence[int], groups: list[list[int]]) -> list[list[int]]:
        """Return this process's share of the forward passes of `rows` of a source, cut into groups of positions."""
        sequences = [source.sequences[i] for i in rows]
        groups.sort(key=lambda group: max(len(sequences[i]) for i in group))  # every process gets as many tokens
        mine = groups[self.accelerator.process_index :: self.accelerator.num_processes]
        passes = micro_batches(mine, sequences, source.budget, shared=source.shared)
        return equal_passes(passes, self.policy, self.accelerator)

    @torch.no_grad()
    def _constants(self, batch: EffectiveBatch) -> Constants:
        """Return what the loss needs of the batch beside its log-probs, from the policy as it is, in eval mode."""
        history = History(*self.kept["history"]) if "history" in self.loss.needs else None
        self.policy.eval()
        given = Constants(history=history)
        if "confidence" in self.loss.needs:
            given = replace(given, confidence=self._confidence(batch))
        if augmented := self.supply.augmented:
            rows = [self.supply.augmented_rows[row] for row in batch.chosen + batch.rejected]
            given = replace(given, augmented=self._score(augmented, rows))
        if mismatched := self.supply.mismatched:
            rows = [self.supply.mismatched_rows[pair] for pair in batch.mismatched()]
            logps = self._score(mismatched.batches, rows)
            reference = mismatched.reference.sums(rows).to(logps.device)
            given = replace(given, kl_pairs=Side(logps, reference, name="mismatched"))
        return given

    def _score(self, source: BatchSource, rows: Sequence[int]) -> Tensor:
        """Return `(len(rows),)` summed log-probs of rows of another source than the batches'."""
        passes = self._share(source, rows, [[i] for i in range(len(rows))])
        return self._forward_all(rows, passes, again=len(passes), source=source)[0]

    def _outputs(self, batch: EffectiveBatch) -> Tensor:
        """Return the policy's outputs for all rows of a batch, without gradient."""
        passes = self._my_passes(batch, batch.rows)
        return self._forward_all(batch.rows, passes, again=len(passes))[0]

    @property
    def _by_token(self) -> bool:
        return "token_values" in self.loss.needs

    def _confidence(self, batch: EffectiveBatch) -> Tensor:
        """Return `(rows,)` the policy's confidence in each response: the mean over its tokens."""
        rows = batch.rows
        found = torch.zeros(len(rows), device=self.policy.device)
        for positions in self._my_passes(batch, rows):
            tokens = self.supply.batches.batch([rows[i] for i in positions] or rows[:1], self.policy)
            flat = self.policy.confidences(tokens)
            if not positions:
                continue
            summed = flat.new_zeros(len(positions)).index_add(0, tokens.sequence, flat)
            found[positions] = summed / torch.bincount(tokens.sequence, minlength=len(positions))
        return self.accelerator.reduce(found, "sum")

    def _remember(self, rows: Sequence[int], logps: Tensor) -> None:
        """Add the batch to the running mean of log-ratios."""
        mean, count = self.kept["history"]
        ratios = (logps.cpu() - self.supply.reference.sums(rows)).double()
        total = count + len(ratios)
        self.kept["history"] = [mean + (ratios.mean().item() - mean) * len(ratios) / total, total]

    def _forward(self, rows: Sequence[int], positions: Sequence[int], source: BatchSource | None = None) -> Tensor:
        """Return `(len(positions),)` summed log-probs of some of the rows of a source, by default the batches'.

        Of these, where the loss needs values: `(len(positions), 2, T)` log-probs and values (see tokenwise.py).
        """
        batch = (source or self.supply.batches).batch([rows[i] for i in positions] or rows[:1], self.policy)
        if source is None and self._by_token:
            flat = self.policy.with_values(batch)
            return by_row(flat, batch.sequence, max(1, len(positions)), self._width(rows))[: len(positions)]
        flat = self.policy(batch)
        if not positions:  # the other processes' pass through a sharded policy needs this one
            return flat[:0]
        return flat.new_zeros(len(positions)).index_add(0, batch.sequence, flat)

    def _zeros(self, rows: Sequence[int], source: BatchSource | None = None) -> Tensor:
        """Return the place for what the policy makes of the rows of a source, by default the batches'."""
        shape = (2, self._width(rows)) if source is None and self._by_token else ()
        return torch.zeros((len(rows), *shape), device=self.policy.device)

    def _width(self, rows: Sequence[int]) -> int:
        """Return T: how many tokens the longest completion of a batch's rows has."""
        return max(len(self.supply.batches.sequences[i].completion) for i in rows)

    def _forward_all(
        self, rows: Sequence[int], passes: list[list[int]], again: int, source: BatchSource | None = None
    ) -> tuple[Tensor, list[Tensor], list]:
        """Return the policy's outputs for all rows; those of this process's passes from number `again` on, with their
        graphs; and the random state before each pass."""
        outputs, graphs, states = self._zeros(rows, source), [], []
        for number, positions in enumerate(passes):
            states.append(random_state(self.policy.device))
            with torch.set_grad_enabled(number >= again):
                found = self._forward(rows, positions, source)
            outputs[positions] = found.detach()
            graphs += [found] if number >= again else []
        return self.accelerator.reduce(outputs, "sum"), graphs, states

    def _backward_by_parts(
        self, batch: EffectiveBatch, rows: Sequence[int], passes: list[list[int]], given: Constants, back: Backward
    ) -> tuple[Tensor, Tensor]:
        """Forward and backward each pass once: enough for a loss that does not couple examples.

        Return the policy's outputs for all rows and the batch's mean loss.
        """
        count, outputs, loss = len(batch.groups()), self._zeros(rows), torch.zeros((), device=self.policy.device)
        for number, positions in enumerate(passes, start=1):
            found = self._forward(rows, positions)
            order = torch.tensor(np.argsort(positions, kind="stable"), device=found.device)
            values = self._rows(batch.part(positions), found[order], given.part(positions)) if positions else found
            share = values.sum() / count
            back(share, number == len(passes))
            outputs[positions] = found.detach()
            loss += share.detach()
        return tuple(self.accelerator.reduce((outputs, loss), "sum"))

    def _backward_as_a_whole(
        self, batch: EffectiveBatch, rows: Sequence[int], passes: list[list[int]], given: Constants, back: Backward
    ) -> tuple[Tensor, Tensor]:
        """All outputs first, then back through each pass with d loss / d output as weights.

        The last passes, as many as are within the token budget together, keep their graphs; the others run again.
        """
        again = self._passes_to_repeat(rows, passes)
        outputs, graphs, states = self._forward_all(rows, passes, again)
        after = random_state(self.policy.device)
        outputs.requires_grad_()
        loss = self._rows(batch, outputs, given).mean()
        (weights,) = torch.autograd.grad(loss, outputs)
        if graphs:
            held = [(graph * weights[positions]).sum() for graph, positions in zip(graphs, passes[again:], strict=True)]
            back(sum(held), again == 0)
            del held
        graphs.clear()
        for number, (positions, state) in enumerate(zip(passes[:again], states, strict=False), start=1):
            set_random_state(self.policy.device, state)  # dropout must fall alike in both forward passes
            back((self._forward(rows, positions) * weights[positions]).sum(), number == again)
        set_random_state(self.policy.device, after)
        repeated = torch.tensor(sum(map(len, passes[:again])), device=outputs.device)
        self.kept["sequences_forwarded"] += int(self.accelerator.reduce(repeated, "sum"))
        return outputs.detach(), loss.detach()

    def _passes_to_repeat(self, rows: Sequence[int], passes: list[list[int]]) -> int:
        """Return how many passes have to run twice, so that no more than the budget is held at once.

        Where the processes go together: all but the last, in each of them.
        """
        if self.policy.together:
            return len(passes) - 1
        held = 0
        for number in reversed(range(len(passes))):
            sequences = [self.supply.batches.sequences[rows[i]] for i in passes[number]]
            held += padded_tokens(sequences, shared=self.supply.batches.shared)
            if held > self.supply.batches.budget and number < len(passes) - 1:
                return number + 1
        return 0

    def _rows(self, batch: EffectiveBatch, outputs: Tensor, given: Constants) -> Tensor:
        """Return the loss's rows for outputs of the policy in the order of the batch's rows."""
        return self.loss(self.supply.preference_batch(batch, outputs, given), **self.settings)


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
    there = [name for name, value in metrics.items() if value is not None]
    values = torch.stack([metrics[name].double() for name in there]).tolist()
    return dict.fromkeys(metrics) | dict(zip(there, values, strict=True))


def _mean(values: Tensor | None) -> Tensor | None:
    return None if values is None or len(values) == 0 else values.double().mean()
