"""What a loss is given of an effective batch: log-probs of policy and reference, and what else it declared to need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from harness.backbones.language_model.scoring import BatchSource, TokenLogProbs
from harness.backbones.language_model.token_values import log_probs
from harness.backbones.language_model.tokens import Tokens
from harness.core.prompt import Prompt
from harness.training.batch import EffectiveBatch, Example
from losses import History, Lists, Loss, PreferenceBatch, Side


@dataclass(frozen=True)
class ScoredSequences:
    """Token sequences with the reference's log-probs."""

    batches: BatchSource
    reference: TokenLogProbs


@dataclass(frozen=True)
class Constants:
    """What a loss sees of an effective batch that carries no gradient and differs from step to step."""

    kl_pairs: Side | None = None
    history: History | None = None
    confidence: Tensor | None = None  # this and the next: one for each row of the batch
    augmented: Tensor | None = None

    def part(self, positions: Sequence[int]) -> Constants:
        """Return what belongs to a part of the batch, given by positions in its rows; the order stays."""
        order = sorted(positions)
        rows = {"confidence": self.confidence, "augmented": self.augmented}
        return replace(self, **{name: None if values is None else values[order] for name, values in rows.items()})


@dataclass(frozen=True)
class Supply:
    """What one loss may need of one split, besides the policy.

    `embeddings` is `(examples, d)`, of their prompts; `density_ratios` is `(examples,)` (see density.py). `mismatched` are responses under prompts that they do not answer;
    `mismatched_rows` finds the one with the prompt of sequence i and the completion of sequence j. `augmented` are the
    sequences with an evaluator's sentence in their prompts; `augmented_rows` finds that of sequence i.
    """

    batches: BatchSource
    reference: TokenLogProbs
    embeddings: np.ndarray | None = None
    density_ratios: np.ndarray | None = None
    second_reference: TokenLogProbs | None = None
    mismatched: ScoredSequences | None = None
    mismatched_rows: Mapping[tuple[int, int], int] | None = None
    augmented: BatchSource | None = None
    augmented_rows: Mapping[int, int] | None = None

    def preference_batch(
        self, batch: EffectiveBatch, outputs: Tensor, given: Constants | None = None
    ) -> PreferenceBatch:
        """Return what the loss sees of a batch, given the policy's outputs in the order of the batch's rows.

        They are summed log-probs or, for a loss that needs token values, log-probs and values (see tokenwise.py).
        """
        given, logps = given or Constants(), log_probs(outputs)
        device, wins, losses = logps.device, len(batch.chosen), len(batch.rejected)

        def tokens(rows: Sequence[int]) -> Tensor:
            return torch.tensor([len(self.batches.sequences[i].completion) for i in rows], device=device)

        def of(values: np.ndarray | None, examples: Sequence[int]) -> Tensor | None:
            return None if values is None else torch.from_numpy(values[np.asarray(examples, dtype=int)]).to(device)

        def scores(examples: Sequence[int], side: int) -> Tensor | None:
            found = [batch.examples[i].scores for i in examples]
            return torch.tensor([s[side] for s in found], device=device) if all(found) else None

        def second(rows: Sequence[int]) -> Tensor | None:
            return None if self.second_reference is None else self.second_reference.sums(rows).to(device)

        def with_tokens(side: Side, rows: Sequence[int], outputs: Tensor) -> Side:
            width = outputs.shape[2]
            mask = torch.arange(width, device=device) < side.tokens[:, None]
            return side.with_tokens(*outputs.unbind(1), mask, self.reference.padded(rows, width).to(device))

        view = PreferenceBatch.from_logps(
            logps[:wins],
            logps[wins : wins + losses],
            self.reference.sums(batch.chosen).to(device),
            self.reference.sums(batch.rejected).to(device),
            chosen_tokens=tokens(batch.chosen),
            rejected_tokens=tokens(batch.rejected),
            chosen_prompt_embeddings=of(self.embeddings, batch.chosen_examples),
            rejected_prompt_embeddings=of(self.embeddings, batch.rejected_examples),
            chosen_density_ratios=of(self.density_ratios, batch.chosen_examples),
            rejected_density_ratios=of(self.density_ratios, batch.rejected_examples),
            chosen_second_reference=second(batch.chosen),
            rejected_second_reference=second(batch.rejected),
            chosen_confidence=None if given.confidence is None else given.confidence[:wins],
            rejected_confidence=None if given.confidence is None else given.confidence[wins : wins + losses],
            chosen_augmented=None if given.augmented is None else given.augmented[:wins],
            rejected_augmented=None if given.augmented is None else given.augmented[wins : wins + losses],
            chosen_scores=scores(batch.chosen_examples, 0),
            rejected_scores=scores(batch.rejected_examples, 1),
            others=self._others(batch, logps[wins + losses :]),
            kl_pairs=given.kl_pairs,
            history=given.history,
        )
        if outputs.ndim > 1:
            rows, parts = (batch.chosen, batch.rejected), outputs.split((wins, losses))
            view = view.changed(lambda sides: map(with_tokens, sides, rows, parts))
        return view.with_stopped()

    def _others(self, batch: EffectiveBatch, logps: Tensor) -> Lists | None:
        """Return the further responses of a listwise batch, padded to the longest list; none where all are pairs."""
        counts = torch.tensor([len(others) for others in batch.others], device=logps.device, dtype=torch.long)
        if not counts.any():
            return None
        mask = torch.arange(int(counts.max()), device=logps.device) < counts[:, None]
        scores = [score for i in batch.chosen_examples for score in batch.examples[i].scores[2:]]
        reference = self.reference.sums([row for others in batch.others for row in others]).to(logps.device)

        def padded(values: Tensor) -> Tensor:
            return values.new_zeros(mask.shape).masked_scatter(mask, values)

        return Lists(padded(logps), padded(reference), padded(torch.tensor(scores, device=logps.device)), mask)


@dataclass(frozen=True)
class Split:
    """Examples (`paired` if each has both completions) with their token data and reference log-probs.

    `embeddings`, `(examples, d)`, `density_ratios` and `second_reference` are there where a loss needs them; `score` gives the reference's log-probs of other
    sequences, computed once and kept by content, and `augment` a prompt's ids with an evaluator's sentence.
    """

    examples: Sequence[Example]
    paired: bool
    batches: BatchSource
    reference: TokenLogProbs
    embeddings: np.ndarray | None
    density_ratios: np.ndarray | None
    second_reference: TokenLogProbs | None
    score: Callable[[list[Tokens]], ScoredSequences]
    augment: Callable[[Prompt], tuple[int, ...]]

    def everything(self) -> EffectiveBatch:
        """Return all examples as one batch, in order."""
        chosen = [i for i, e in enumerate(self.examples) if e.chosen is not None]
        rejected = [i for i, e in enumerate(self.examples) if e.rejected is not None]
        return EffectiveBatch(self.examples, "paired" if self.paired else "unpaired", chosen, rejected)

    def supply(self, loss: Loss, plan: Iterable[EffectiveBatch]) -> Supply:
        """Return what the loss needs for the batches of a plan."""
        supply = Supply(self.batches, self.reference, self.embeddings, self.density_ratios, self.second_reference)
        if "augmented" in loss.needs:
            supply = with_augmented(supply, self.examples, self.augment)
        return with_mismatched(supply, plan, self.score) if "kl_pairs" in loss.needs else supply


def with_augmented(supply: Supply, examples: Sequence[Example], augment: Callable[[Prompt], tuple[int, ...]]) -> Supply:
    """Return the supply with the chosen and rejected sequences under augmented prompts; the reference scores none."""
    batches, rows, index = supply.batches, {}, {}
    for example in examples:
        prompt = augment(example.prompt)
        for row in (i for i in (example.chosen, example.rejected) if i is not None):
            rows[row] = index.setdefault(Tokens(prompt, batches.sequences[row].completion), len(index))
    # without the frozen layers' activations: these prompts have none in the store
    source = replace(batches, sequences=list(index), trunk=None)
    return replace(supply, augmented=source, augmented_rows=rows)


def with_mismatched(
    supply: Supply, plan: Iterable[EffectiveBatch], score: Callable[[list[Tokens]], ScoredSequences]
) -> Supply:
    """Return the supply with the mismatched pairs of a plan's batches, each sequence once."""
    sequences, rows, index = supply.batches.sequences, {}, {}
    for prompt, completion in (pair for batch in plan for pair in batch.mismatched()):
        tokens = Tokens(sequences[prompt].prompt, sequences[completion].completion)
        rows[prompt, completion] = index.setdefault(tokens, len(index))
    return replace(supply, mismatched=score(list(index)), mismatched_rows=rows)
