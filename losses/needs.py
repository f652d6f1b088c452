"""A registry of what losses may need besides the policy's log-probs.

This module defines what does not depend on a model: a need's name, what it belongs to, and how to draw random values of
it for testing losses. The backbone that supplies a need also computes it. A need registered with `register_need` comes
with its own function, so that every backbone supplies it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from losses.batch import History, PreferenceBatch, Side, name_problem
from losses.registry import Registry, RegistryError, origin_of

WIDTH = 8  # dimensions of a random embedding
KINDS = ("response", "prompt", "batch")
Random = Callable[[Any, Generator], Any]


def _uniform(side: Side, generator: Generator) -> Tensor:
    return 0.5 + torch.rand(len(side), generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Need:
    """Something that a loss may declare in `needs`.

    `of` says what it belongs to: a "response" or a "prompt" has values `(n, ...)` on each side of a batch, read with
    `side.require(name)`; a need of the whole "batch" is read with `batch.require(name)`. `random(side, generator)`, or
    `random(batch, generator)` for a batch, draws random values; None if they are drawn together with the log-probs.
    `compute` is a user's function of a split; None if the backbone computes the need.
    """

    name: str
    summary: str
    of: str = "response"
    random: Random | None = None
    compute: Callable[[Any], Any] | None = None


NEEDS: Registry[Need] = Registry("need")


def register_need(name: str, *, of: str = "response", random: Random = _uniform) -> Callable[[Callable], Callable]:
    """Register a function of a split, called once per split, that computes a need.

    The function returns two arrays, `(examples, ...)` each, for the chosen and the rejected responses, or a single
    array for a need of a "prompt". Values are finite wherever there is a response. `random(side, generator)` returns
    random values `(len(side), ...)` for testing losses, by default uniform between 0.5 and 1.5.
    """

    def decorate(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        origin = origin_of(function)
        if of not in ("response", "prompt"):
            raise RegistryError(f"need {name!r} ({origin}): of is {of!r}; known: response, prompt")
        if name not in NEEDS and (problem := name_problem(name)):
            raise RegistryError(f"need {name!r} ({origin}): {problem}")
        summary = (inspect.getdoc(function) or "").split("\n")[0]
        NEEDS.add(name, Need(name, summary, of, random, function), origin)
        return function

    return decorate


def _kl_pairs(batch: PreferenceBatch, generator: Generator) -> Side:
    reference = torch.cat([side.require("reference") for side in (batch.chosen, batch.rejected)])
    spread = batch.chosen.logratio.abs().max()  # makes the KL estimate clearly positive
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
