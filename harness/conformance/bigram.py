"""A minimal backbone: a table of bigrams. It shares only the training interface with the language model, no code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from harness.training.base import LogProbs, Progress
from harness.training.batch import EffectiveBatch
from harness.training.forward import Training
from harness.training.needs.suppliers import SUPPLIERS as SUPPLIED_BY_ALL
from harness.training.supply import Column, EachStep, Split, Supplier

VOCABULARY = 16
AUGMENTED = (1, 2)  # the prompt that asks for the best response


@dataclass(frozen=True)
class Text:
    """A prompt and a response, as integers below `VOCABULARY`."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


class Bigram(nn.Module):
    """Log-probs and values of a token given the previous one."""

    compute_dtype, device, together = torch.float32, torch.device("cpu"), False

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY))
        self.values = nn.Parameter(torch.randn(VOCABULARY))

    def forward(self, previous: Tensor, following: Tensor) -> Tensor:
        """Return log-probs, in the shape of the inputs."""
        return self.table.log_softmax(-1)[previous, following]

    def confidences(self, previous: Tensor, following: Tensor) -> Tensor:
        """Return log p(y_t) - log sum_v p(v)^2, in the shape of the inputs."""
        return self(previous, following) - (2 * self.table.log_softmax(-1)).logsumexp(-1)[previous]

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the table and the values."""
        return dict(self.named_parameters())

    def units(self) -> list[nn.Module]:
        """Return the policy, the only module."""
        return [self]

    def entries(self) -> tuple[str, ...]:
        """Return the method that is called besides `forward`."""
        return ("confidences",)

    def save(self, folder: Path, *, write: bool = True) -> None:
        """Write the table."""
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            save_file({"table": self.table.detach().contiguous()}, folder / "tensors.safetensors")


@dataclass
class Texts:
    """A source of texts; a forward pass is a padded table of them."""

    texts: Sequence[Text]
    budget: int

    def __len__(self) -> int:
        return len(self.texts)

    def tokens(self, rows: Sequence[int]) -> int:
        """Return the size of the table."""
        return len(rows) * max(len(self.texts[i]) for i in rows)

    def lengths(self, rows: Sequence[int]) -> Tensor:
        """Return the number of tokens of each response."""
        return torch.tensor([len(self.texts[i].response) for i in rows], dtype=torch.long)

    def passes(self, rows: Sequence[int], groups: Sequence[Sequence[int]]) -> list[list[int]]:
        """Fill passes one after another."""
        passes: list[list[int]] = []
        for group in groups:
            longer = [*passes[-1], *group] if passes else []
            if passes and self.tokens([rows[i] for i in longer]) <= self.budget:
                passes[-1] = longer
            else:
                passes.append(list(group))
        return passes

    def outputs(self, policy: Bigram, rows: Sequence[int], *, by_token: bool = False) -> Tensor:
        """Return log-probs, or log-probs and values of each token."""
        previous, following, mask = self._table(rows)
        logps = policy(previous, following).masked_fill(~mask, 0.0)
        if not by_token:
            # the order of addition depends on the rows of the pass, as it does in the layers of a language model
            return logps.roll(len(rows), dims=1).sum(1)
        return torch.stack([logps, policy.values[previous].masked_fill(~mask, 0.0)], dim=1)

    @torch.no_grad()
    def confidences(self, policy: Bigram, rows: Sequence[int]) -> Tensor:
        """Return the mean confidence in the tokens of each response."""
        previous, following, mask = self._table(rows)
        return policy.confidences(previous, following).masked_fill(~mask, 0.0).sum(1) / mask.sum(1)

    @torch.no_grad()
    def score(self, policies: Sequence[Bigram], progress: Progress = lambda done, total: None) -> list[LogProbs]:
        """Return the log-probs of all responses' tokens under each policy."""
        rows = range(len(self))
        previous, following, mask = self._table(rows)
        offsets = np.concatenate([[0], np.cumsum(self.lengths(rows).numpy())])
        return [LogProbs(policy(previous, following)[mask].numpy(), offsets) for policy in policies]

    def crossed(self, pairs: Sequence[tuple[int, int]]) -> tuple[Texts, list[int]]:
        """Return a source of each pair's first prompt with its second response, and the row of each pair in it."""
        texts = [Text(self.texts[i].prompt, self.texts[j].response) for i, j in pairs]
        index = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        return replace(self, texts=list(index)), [index[text] for text in texts]

    def _table(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the previous token, the token and the mask, `(rows, T)` each."""
        lengths = self.lengths(rows)
        width = int(lengths.max())
        before, after = [], []
        for text in (self.texts[i] for i in rows):
            tokens = torch.tensor([text.prompt[-1], *text.response])
            before.append(pad(tokens[:-1], (0, width - len(tokens) + 1)))
            after.append(pad(tokens[1:], (0, width - len(tokens) + 1)))
        return torch.stack(before), torch.stack(after), torch.arange(width) < lengths[:, None]


@dataclass(frozen=True)
class BigramSplit(Split):
    """A split of texts, with a second reference."""

    second: Bigram


class _Confidence(EachStep):
    def __init__(self, split: BigramSplit, plan: Iterable[EffectiveBatch]):
        self.source = split.source

    def before(self, training: Training, batch: EffectiveBatch) -> Tensor:
        return training.of_rows(self.source, batch.rows, partial(self.source.confidences, training.policy))


class _Augmented(EachStep):
    def __init__(self, split: BigramSplit, plan: Iterable[EffectiveBatch]):
        self.source = replace(split.source, texts=[replace(text, prompt=AUGMENTED) for text in split.source.texts])

    def before(self, training: Training, batch: EffectiveBatch) -> Tensor:
        rows = batch.chosen + batch.rejected
        return training.of_rows(self.source, rows, partial(self.source.outputs, training.policy))


def _second_reference(split: BigramSplit, plan: Iterable[EffectiveBatch]) -> Column:
    (scored,) = split.source.score([split.second])
    return Column(*(scored.sums([getattr(e, side) for e in split.examples]).numpy() for side in ("chosen", "rejected")))


SUPPLIERS = {
    **SUPPLIED_BY_ALL,
    "second_reference": Supplier(_second_reference),
    "confidence": Supplier(_Confidence),
    "augmented": Supplier(_Augmented),
    "token_values": Supplier(),
}
