"""The input of a loss for an effective batch: log-probs of policy and reference, and the declared needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.core.errors import UserError
from harness.training.base import LogProbs, Source
from harness.training.batch import EffectiveBatch, Example
from harness.training.forward import Training
from losses.batch import History, Lists, PreferenceBatch, Side
from losses.needs import NEEDS
from losses.spec import Loss

Value = Tensor | Side | History  # a tensor is `(rows, ...)`, of the chosen and rejected rows of a batch


@dataclass(frozen=True)
class Column:
    """Values computed once per split, `(examples, ...)` fp32 for each side; undefined where a side has no response."""

    chosen: np.ndarray
    rejected: np.ndarray

    @classmethod
    def of_prompts(cls, values: np.ndarray) -> Column:
        """Return the column of values that belong to prompts, and so to both responses of an example."""
        return cls(values, values)


class EachStep:
    """A need that is computed for each batch with the current policy, without gradient."""

    def before(self, training: Training, batch: EffectiveBatch) -> Value:
        """Return the value for a batch. The policy is in eval mode."""
        raise NotImplementedError

    def after(self, training: Training, view: PreferenceBatch) -> None:
        """Update any running state with a batch that was trained on, as the loss saw it."""


@dataclass(frozen=True)
class Supply:
    """The inputs of one loss on one split besides the policy's outputs: columns and per-step values, by need."""

    source: Source
    reference: LogProbs
    columns: Mapping[str, Column] = field(default_factory=dict)
    steps: Mapping[str, EachStep] = field(default_factory=dict)

    def preference_batch(
        self, batch: EffectiveBatch, outputs: Tensor, computed: Mapping[str, Value] | None = None
    ) -> PreferenceBatch:
        """Return the loss's view of a batch from the policy's outputs (see `Source.outputs`) and per-step values."""
        logps = log_probs(outputs)
        device, wins, losses = logps.device, len(batch.chosen), len(batch.rejected)
        reference, lengths = self.reference.sums(batch.rows).to(device), self.source.lengths(batch.rows).to(device)
        sides = {
            need: (
                _taken(column.chosen, batch.chosen_examples).to(device),
                _taken(column.rejected, batch.rejected_examples).to(device),
            )
            for need, column in self.columns.items()
        }
        of_batch: dict[str, Any] = {}
        for need, value in (computed or {}).items():
            if isinstance(value, Tensor):
                sides[need] = (value[:wins], value[wins : wins + losses])
            else:
                of_batch[need] = value
        view = PreferenceBatch.from_logps(
            logps[:wins],
            logps[wins : wins + losses],
            reference[:wins],
            reference[wins : wins + losses],
            chosen_tokens=lengths[:wins],
            rejected_tokens=lengths[wins : wins + losses],
            others=self._others(batch, logps[wins + losses :], reference[wins + losses :]),
            needs=sides,
            **of_batch,
        )
        if outputs.ndim > 1:
            view = self._by_token(view, batch, outputs)
        return view.with_stopped()

    def _by_token(self, view: PreferenceBatch, batch: EffectiveBatch, outputs: Tensor) -> PreferenceBatch:
        width, device = outputs.shape[2], outputs.device

        def with_tokens(side: Side, rows: Sequence[int], outputs: Tensor) -> Side:
            mask = torch.arange(width, device=device) < side.require("tokens")[:, None]
            policy, values = outputs.unbind(1)
            return side.with_tokens(policy, values, mask, self.reference.padded(rows, width).to(device))

        chosen, rejected = outputs.split((len(batch.chosen), len(batch.rejected)))
        return replace(
            view,
            chosen=with_tokens(view.chosen, batch.chosen, chosen),
            rejected=with_tokens(view.rejected, batch.rejected, rejected),
        )

    def _others(self, batch: EffectiveBatch, logps: Tensor, reference: Tensor) -> Lists | None:
        """Return the further responses of a listwise batch, padded to the longest list; None if all lists are pairs."""
        counts = torch.tensor([len(others) for others in batch.others], device=logps.device, dtype=torch.long)
        if not counts.any():
            return None
        mask = torch.arange(int(counts.max()), device=logps.device) < counts[:, None]
        scores = [score for i in batch.chosen_examples for score in batch.examples[i].scores[2:]]

        def padded(values: Tensor) -> Tensor:
            return values.new_zeros(mask.shape).masked_scatter(mask, values)

        return Lists(padded(logps), padded(reference), padded(torch.tensor(scores, device=logps.device)), mask)


def _taken(values: np.ndarray, examples: Sequence[int]) -> Tensor:
    return torch.from_numpy(values[np.asarray(examples, dtype=int)])


def log_probs(outputs: Tensor) -> Tensor:
    """Return the summed log-probs, `(rows,)`, of outputs in either form (see `Source.outputs`)."""
    return outputs if outputs.ndim == 1 else outputs[:, 0].sum(dim=1)


@dataclass(frozen=True)
class Split:
    """Examples (`paired` if each has both responses) with the source of their rows and the reference's log-probs.

    `train` holds the examples of the training split, on which classifiers are fitted. `score` returns the reference's
    log-probs of another source, computed once and cached by content; `embed` returns fp32 embeddings of prompts,
    `(examples, d)`. `suppliers` maps needs to the backbone's suppliers.
    """

    examples: Sequence[Example]
    paired: bool
    train: Sequence[Example]
    source: Source
    reference: LogProbs
    score: Callable[[Source], LogProbs]
    embed: Callable[[Sequence[Example]], np.ndarray]
    suppliers: Mapping[str, Supplier]

    def everything(self) -> EffectiveBatch:
        """Return all examples as one batch, in order."""
        chosen = [i for i, e in enumerate(self.examples) if e.chosen is not None]
        rejected = [i for i, e in enumerate(self.examples) if e.rejected is not None]
        return EffectiveBatch(self.examples, "paired" if self.paired else "unpaired", chosen, rejected)

    def supply(self, loss: Loss, plan: Iterable[EffectiveBatch]) -> Supply:
        """Return everything that the loss needs for the batches of a plan."""
        needs = set(loss.needs)
        if loss.data == "listwise" and all(example.scores for example in self.examples):
            needs.add("scores")  # without scores, `PreferenceBatch.lists` uses ranks
        columns, steps = {}, {}
        for need in sorted(needs):
            made = supplier_of(need, self.suppliers).compute(self, plan)
            if isinstance(made, Column):
                columns[need] = made
            elif made is not None:
                steps[need] = made
        return Supply(self.source, self.reference, columns, steps)


@dataclass(frozen=True)
class KeyInputs:
    """The inputs of a need's part of a cell's key: hashes of the prompts, the encoder and the second reference."""

    prompts: str
    encoder: Callable[[], str]
    second_reference: str | None


@dataclass(frozen=True)
class Supplier:
    """How a backbone supplies a need.

    `compute(split, plan)` returns the need for a split and the batches of a plan: a column of values, an object that is
    called at each step, or None if it comes with the log-probs. `key` returns what it depends on beyond what is in the
    key of every cell (weights, token data, settings, code).
    """

    compute: Callable[[Any, Iterable[EffectiveBatch]], Column | EachStep | None] = lambda split, plan: None
    key: Callable[[KeyInputs], object] = lambda inputs: None


def supplier_of(need: str, suppliers: Mapping[str, Supplier]) -> Supplier:
    """Return the supplier of a need: the function that a user registered with it, or else the backbone's.

    Raises `UserError` if there is neither.
    """
    own = NEEDS.get(need).compute
    if own is not None:
        return Supplier(lambda split, plan: _own_column(need, own(split), split), lambda inputs: inputs.prompts)
    if need not in suppliers:
        raise UserError(f"this backbone does not supply {need!r}; it supplies {', '.join(suppliers)}")
    return suppliers[need]


def _own_column(need: str, computed: Any, split: Split) -> Column:
    """Return the result of a user's function as a column; raise `UserError` if its shape does not match the split."""
    sides = (computed, computed) if NEEDS.get(need).of == "prompt" else computed
    try:
        chosen, rejected = (np.asarray(values, dtype=np.float32) for values in sides)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"need {need!r}: its function must return two arrays, of chosen and rejected ({error})"
        ) from None
    for values in (chosen, rejected):
        if values.shape[:1] != (len(split.examples),):
            raise UserError(
                f"need {need!r}: {len(split.examples)} examples, and its function returned shape {values.shape}"
            )
    return Column(chosen, rejected)
