"""How a batch of sequences is continued by one token at a time: from the model's cache, or by reading all of it again.

Caches differ from architecture to architecture: keys and values, convolution and recurrent states, or a kind of its
own. Which way is right for a model is tried on it, by comparison with its logits of whole sequences.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from harness.core.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.backbones.language_model.policy import LanguageModel

LENGTHS = (2, 4, 6)  # of the prompts that a way of stepping is tried on
STEPS = 8  # of the trial, more than the width of a convolution in any architecture
LEAVES = 2  # the step before which the longest prompt leaves the batch
# The largest error of log-probs, relative to their spread, that rounding explains.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


class Steps(Protocol):
    """A batch of sequences that are continued. `costs` says what is slow about it, "" if nothing is."""

    costs: ClassVar[str]

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_token: int): ...

    def logits(self) -> Tensor:
        """Return `(rows, vocabulary)` fp32 logits of the next token. Called once between two calls of `extend`."""

    def extend(self, tokens: Tensor) -> None:
        """Add a token to each row, `(rows,)`."""

    def select(self, places: Tensor) -> None:
        """Keep only the rows at these places, `(remaining,)`."""


class Cached:
    """Each step reads only the last token: the rest is in the model's cache. Prompts are padded on the left.

    The model prepares its inputs as for its own `generate`, since it may name its cache in its own way, or want another
    mask than the usual one.
    """

    costs = ""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_token: int):
        longest = max(map(len, prompts))
        self._model = model
        self._accepted = inspect.signature(model.forward).parameters
        self._cache_name = "cache_params" if "cache_params" in self._accepted else "past_key_values"
        self._cache = DynamicCache(config=model.config)
        self._tokens = torch.tensor([[pad_token] * (longest - len(p)) + list(p) for p in prompts], device=model.device)
        self._mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        self._positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)
        self._first = True

    def logits(self) -> Tensor:
        """Return `(rows, vocabulary)` fp32 logits of the next token."""
        inputs = self._model.prepare_inputs_for_generation(
            self._tokens,
            is_first_iteration=self._first,
            attention_mask=self._mask,
            position_ids=self._positions,
            use_cache=True,
            logits_to_keep=1,
            output_router_logits=False,  # a loss that balances experts cannot be computed from single tokens
            **{self._cache_name: self._cache},
        )
        self._first = False
        accepted = {name: value for name, value in inputs.items() if name in self._accepted}
        return self._model(**accepted).logits[:, -1].float()

    def extend(self, tokens: Tensor) -> None:
        """Add a token to each row, `(rows,)`."""
        self._tokens, self._positions = tokens[:, None], self._positions[:, -1:] + 1
        self._mask = torch.cat([self._mask, self._mask.new_ones((len(tokens), 1))], dim=1)

    def select(self, places: Tensor) -> None:
        """Keep only the rows at these places, `(remaining,)`."""
        self._tokens, self._positions, self._mask = self._tokens[places], self._positions[places], self._mask[places]
        self._cache.reorder_cache(places)


class Reread:
    """Each step reads every sequence from its beginning. Sequences are padded on the right, which no token sees."""

    costs = "each token of a sample reads the whole sequence again"

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_token: int):
        longest = max(map(len, prompts))
        self._model, self._pad = model, pad_token
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._tokens = torch.tensor([list(p) + [pad_token] * (longest - len(p)) for p in prompts], device=model.device)
        self._last = torch.tensor([len(p) - 1 for p in prompts], device=model.device)

    def logits(self) -> Tensor:
        """Return `(rows, vocabulary)` fp32 logits of the next token."""
        places, of_row = self._last.unique(return_inverse=True)
        kept = {"logits_to_keep": places} if self._keeps else {}
        logits = self._model(input_ids=self._tokens, use_cache=False, **kept).logits
        return logits[torch.arange(len(logits), device=logits.device), of_row if self._keeps else self._last].float()

    def extend(self, tokens: Tensor) -> None:
        """Add a token to each row, `(rows,)`."""
        self._last = self._last + 1
        if int(self._last.max()) == self._tokens.shape[1]:
            self._tokens = torch.cat([self._tokens, torch.full_like(self._tokens[:, :1], self._pad)], dim=1)
        self._tokens = self._tokens.scatter(1, self._last[:, None], tokens[:, None])

    def select(self, places: Tensor) -> None:
        """Keep only the rows at these places, `(remaining,)`."""
        self._last = self._last[places]
        self._tokens = self._tokens[places, : int(self._last.max()) + 1]


@torch.no_grad()
def steps_of(policy: LanguageModel, pad_token: int) -> type[Steps]:
    """Return the fastest way of stepping that gives the model's own log-probs of whole sequences, within rounding.

    Raises `UserError` if there is none.
    """
    config = policy.eval().model.config
    size = config.get_text_config().vocab_size
    ids = (torch.arange(sum(LENGTHS) + STEPS * len(LENGTHS)) + size // 2).remainder(size)  # beyond the control tokens
    rows = [part.tolist() for part in ids.split([length + STEPS for length in LENGTHS])]
    reasons = []
    for steps in (Cached, Reread):
        try:
            with policy.autocast():
                error = _error(steps, policy.model, rows, pad_token)
        except Exception as raised:  # models raise arbitrary errors for caches or masks that they do not expect
            reasons.append(one_line(f"{type(raised).__name__}: {raised}"))
            continue
        if error <= TOLERANCE[policy.compute_dtype]:
            return steps
        reasons.append(f"log-probs are off by {error:.0%} of their spread")
    raise UserError(
        f"model {config.model_type}: it cannot be sampled, neither with its cache ({reasons[0]}) nor without "
        f"({reasons[1]})"
    )


def _error(steps: type[Steps], model: PreTrainedModel, rows: list[list[int]], pad_token: int) -> float:
    """Return the error of the log-probs of single steps, relative to their spread, against those of whole sequences.

    It is the median over the steps of a row, as rounding can send single tokens to other experts, and the largest over
    the rows that stay in the batch.
    """
    read = [model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0] for row in rows]
    # `(steps, rows, vocabulary)` and `(steps, rows)`: the log-probs at each step, and the tokens that follow
    at = [slice(length - 1, length - 1 + STEPS) for length in LENGTHS]
    whole = torch.stack([logits[of].float().log_softmax(-1) for logits, of in zip(read, at, strict=True)], dim=1)
    following = torch.tensor([row[length:] for row, length in zip(rows, LENGTHS, strict=True)], device=model.device).T
    batch = steps(model, [row[:length] for row, length in zip(rows, LENGTHS, strict=True)], pad_token)
    staying = len(rows) - 1
    errors = []
    for step in range(STEPS):
        if step == LEAVES:
            batch.select(torch.arange(staying, device=model.device))
        here = slice(staying if step >= LEAVES else None)
        difference = batch.logits().log_softmax(-1) - whole[step, here]
        relative = difference.square().mean(1).sqrt() / whole[step, here].std(1).clamp(min=1e-6)
        errors.append(relative[:staying])
        batch.extend(following[step, here])
    return float(torch.stack(errors).median(dim=0).values.max())
