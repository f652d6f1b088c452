"""Programmatic rewards: functions from a prompt and a response to a number, by registered name or `module:function`.

With a known reward, policies can be scored directly, and a judge that prefers the response with the higher reward
makes no errors: the controlled setting of the DPO paper (2305.18290, section 6.1).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import UserError
from harness.core.hashing import hash_source
from harness.core.user_code import user_code
from losses.registry import Registry, nearest, origin_of

RewardFunction = Callable[[str, str], float]


@dataclass(frozen=True)
class Reward:
    """A reward `function(prompt, response) -> float`, higher is better; the prompt is text, as shown to a judge.

    `version()` identifies what determines its values (by default, a hash of its code). It is part of the key of every
    artifact that depends on a value.
    """

    name: str
    function: RewardFunction
    version: Callable[[], str]

    def __call__(self, prompt: str, response: str) -> float:
        """Return the reward of one response, as a float."""
        return float(self.function(prompt, response))


REWARDS: Registry[Reward] = Registry("reward")


def register_reward(
    name: str, *, version: Callable[[], str] | None = None
) -> Callable[[RewardFunction], RewardFunction]:
    """Return a decorator that registers a function `(prompt, response) -> float` under a name.

    `version()` returns what determines its values besides the code, such as the hash of a fitted model; by default it
    is the hash of the function's source file.
    """

    def decorate(function: RewardFunction) -> RewardFunction:
        REWARDS.add(name, Reward(name, function, version or (lambda: _source_hash(function))), origin_of(function))
        return function

    return decorate


def find_reward(name: str) -> Reward:
    """Return the registered reward of this name, the function `module:function`, or a text classifier's reward.

    A classifier is named by a local folder or a hub id (see `harness.tasks.rewards.classifier`). A module is imported
    by Python's rules and also from the working directory. Raises `UserError` for a name that is none of these (with
    the nearest registered name), a module that cannot be imported, or an attribute that cannot be called.
    """
    if name in REWARDS:
        return REWARDS.get(name)
    module_name, separator, attribute = name.partition(":")
    if not separator and (name.count("/") == 1 or Path(name).is_dir()):
        from harness.tasks.rewards.classifier import ClassifierReward

        classifier = ClassifierReward(name)
        return Reward(name, classifier, lambda: classifier.hash)
    if not separator:
        raise UserError(
            f"reward {name!r} is neither registered nor of the form module:function{nearest(name, REWARDS)}"
        )
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    with user_code(f"reward {name!r} cannot be imported", module_name):
        function = getattr(importlib.import_module(module_name), attribute)
    if not callable(function):
        raise UserError(f"reward {name!r} is not a function (it is a {type(function).__name__})")
    return Reward(name, function, lambda: _source_hash(function))


def _source_hash(function: Callable) -> str:
    file = Path(origin_of(function).rpartition(":")[0])
    return hash_source(file) if file.suffix == ".py" and file.is_file() else origin_of(function)
