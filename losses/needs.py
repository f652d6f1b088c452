"""What losses may need beside the policy's log-probs, each as one object in a registry.

Here stands what can be said without a model: a need's name, what it is of, and random values of it on which losses are
tried. How it is computed lives with the backbone that supplies it. A need registered with `register_need` brings a
function that computes it, and so is supplied by every backbone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from losses.batch import History, PreferenceBatch, Side
from losses.registry import Registry, RegistryError, origin_of

WIDTH = 8  # dimensions of a random embedding
KINDS = ("response", "prompt", "batch")
Random = Callable[[Any, Generator], Any]


def _uniform(side: Side, generator: Generator) -> Tensor:
    return 0.5 + torch.rand(len(side), generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Need:
    """Something that a loss may declare in `needs`.

    `of`: a "response" or a "prompt" has `(n, ...)` values on each side of a batch, read by `side.require(name)`; what
    is of the whole "batch" is read by `batch.require(name)`. `random(side, generator)`, for a batch
    `random(batch, generator)`, makes such values up; None where log-probs are made up with them. `compute` is a user's
    own function of a split; None where the backbone knows how.
    """

    name: str
    summary: str
    of: str = "response"
    random: Random | None = None
    compute: Callable[[Any], Any] | None = None


NEEDS: Registry[Need] = Registry("need")


def register_need(name: str, *, of: str = "response", random: Random = _uniform) -> Callable[[Callable], Callable]:
    """Register a need that is computed once for a split of the data, by a function of the split.

    The function returns an array for the chosen and one for the rejected responses, `(examples, ...)` each, or, for a
    need of a "prompt", one array for both. `random(side, generator)` returns `(len(side), ...)` values to try losses
    on, uniform between 0.5 and 1.5 by default.
    """

    def decorate(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        origin = origin_of(function)
        if of not in ("response", "prompt"):
            raise RegistryError(f"need {name!r} ({origin}): of is {of!r}; known: response, prompt")
        summary = (inspect.getdoc(function) or "").split("\n")[0]
        NEEDS.add(name, Need(name, summary, of, random, function), origin)
        return function

    return decorate


def _kl_pairs(batch: PreferenceBatch, generator: Generator) -> Side:
    reference = torch.cat([side.require("reference") for side in (batch.chosen, batch.rejected)])
    spread = batch.chosen.logratio.abs().max()  # a KL that is large enough to be seen
    return Side(reference + 2 + spread, reference, name="mismatched")


def _history(batch: PreferenceBatch, generator: Generator) -> History:
    return History(batch.chosen.logratio.abs().mean().item(), 10)


BUILT_IN = (
    Need("reference", "log-probs under the policy's start"),
    Need(
        "second_reference",
        "log-probs under another model, named in the experiment",
        random=lambda side, g: side.require("reference") * (0.9 + 0.2 * torch.rand(len(side), generator=g)),
    ),
    Need(
        "prompt_embeddings",
        "embeddings of the prompts, `(n, d)`",
        of="prompt",
        random=lambda side, g: torch.randn(len(side), WIDTH, generator=g, dtype=torch.float64),
    ),
    Need(
        "density_ratios",
        "p(chosen | x) / p(rejected | x) of the prompts",
        of="prompt",
        random=lambda side, g: torch.linspace(0.1, 20.0, len(side), dtype=torch.float64),
    ),
    Need("scores", "a score of each response; higher is better"),
    Need(
        "confidence",
        "the policy's mean over tokens of log pi(y_t) - log sum_v pi(v)^2, without gradient",
        random=lambda side, g: -torch.rand(len(side), generator=g, dtype=torch.float64),
    ),
    Need(
        "augmented",
        "the policy's log-prob where the prompt asks for the best response, without gradient",
        random=lambda side, g: -20 * torch.rand(len(side), generator=g, dtype=torch.float64),
    ),
    Need("token_values", "log-probs, and values by a head that is trained beside the policy, of each token"),
    Need("kl_pairs", "responses under prompts that they do not answer, without gradient", "batch", _kl_pairs),
    Need("history", "mean and number of the log-ratios of all steps before", "batch", _history),
    Need("stopped", "the batch itself as a constant", "batch"),
)
for need in BUILT_IN:
    NEEDS.add(need.name, need, "losses/needs.py")
