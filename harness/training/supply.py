"""The input of a loss for an effective batch: log-probs of policy and reference, and the declared needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.core.errors import UserError, one_line
from harness.core.user_code import user_code
from harness.training.base import LogProbs, Source
from harness.training.batch import EffectiveBatch, Example
from harness.training.forward import Training
from losses.batch import SIDE_ARGUMENTS, History, Lists, PreferenceBatch, Side
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
        self,
        batch: EffectiveBatch,
        outputs: Tensor,
        computed: Mapping[str, Value] | None = None,
        layers: torch.dtype = torch.float32,
    ) -> PreferenceBatch:
        """Return the loss's view of a batch from the policy's outputs (see `Source.outputs`) and per-step values.

        `layers` is the policy's compute dtype, on which the rounding of its log-probs depends.
        """
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
        arguments: dict[str, Any] = {}
        for need, value in (computed or {}).items():
            if isinstance(value, Tensor):
                sides[need] = (value[:wins], value[wins : wins + losses])
            else:
                arguments[need] = value
        for need in sides.keys() & set(SIDE_ARGUMENTS):
            arguments[f"chosen_{need}"], arguments[f"rejected_{need}"] = sides.pop(need)
        view = PreferenceBatch.from_logps(
            logps[:wins],
            logps[wins : wins + losses],
            reference[:wins],
            reference[wins : wins + losses],
            chosen_tokens=lengths[:wins],
            rejected_tokens=lengths[wins : wins + losses],
            others=self._others(batch, logps[wins + losses :], reference[wins + losses :]),
            layers=layers,
            needs=sides,
            **arguments,
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
    if NEEDS.get(need).compute is not None:
        return Supplier(lambda split, plan: _own_column(need, split), lambda inputs: inputs.prompts)
    if need not in suppliers:
        raise UserError(f"this backbone does not supply {need!r}; it supplies {', '.join(suppliers)}")
    return suppliers[need]


def _own_column(need: str, split: Split) -> Column:
    """Return what a user's function computes of a split, as a column.

    Raises `UserError` that names the need if the function fails, if its result does not match the split, or if a value
    of a response is not finite.
    """
    own = NEEDS.get(need)
    with user_code(f"need {need!r}", getattr(own.compute, "__module__", "")):
        computed = own.compute(split)  # type: ignore[misc]  # mypy: the caller has seen that there is a function
    try:
        chosen, rejected = map(_fp32, (computed, computed) if own.of == "prompt" else computed)
    except (RuntimeError, TypeError, ValueError) as error:  # RuntimeError: tensors of different shapes
        raise UserError(
            f"need {need!r}: its function must return two arrays of real numbers, of chosen and rejected "
            f"({one_line(error)})"
        ) from None
    for side, values in (("chosen", chosen), ("rejected", rejected)):
        if values.shape[:1] != (len(split.examples),):
            raise UserError(
                f"need {need!r}: {len(split.examples)} examples, and its function returned shape {values.shape}"
            )
        for number, (example, value) in enumerate(zip(split.examples, values, strict=True)):
            if getattr(example, side) is not None and not np.isfinite(value).all():
                wrong = value[~np.isfinite(value)].flat[0]
                raise UserError(
                    f"need {need!r}: its function returned {wrong} (in fp32) for the {side} response of example "
                    f"{number}; values must be finite"
                )
    return Column(chosen, rejected)


def _fp32(values: Any) -> np.ndarray:
    """Return real numbers of any dtype, in an array, a tensor, or a list of either, as an fp32 array.

    Raises `ValueError` or `TypeError` for anything else.
    """
    if isinstance(values, (list, tuple)) and any(isinstance(value, Tensor) for value in values):
        values = torch.stack([torch.as_tensor(value) for value in values])
    if isinstance(values, Tensor):
        if values.requires_grad:
            raise ValueError("a tensor requires grad; a need is data: return it with .detach()")
        values = (values if values.is_complex() else values.double()).cpu().numpy()
    values = np.asarray(values)
    if np.iscomplexobj(values):
        raise ValueError("complex numbers")
    with np.errstate(over="ignore"):  # infinity is refused with the need's name
        return values.astype(np.float32)
