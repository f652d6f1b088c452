"""Programmatic rewards: functions from a prompt and a response to a number, named or given as `module:function`.

Where the reward is known, the policies can be scored by it itself, and a judge that prefers what it scores higher
never errs: the controlled setting of the DPO paper (2305.18290, section 6.1).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import UserError
from harness.core.hashing import hash_source
from losses.registry import Registry, nearest, origin_of

RewardFunction = Callable[[str, str], float]


@dataclass(frozen=True)
class Reward:
    """A reward `function(prompt, response) -> float`, more is better; the prompt is text, as a judge would read it.

    `version` says what determines its values (a hash of its code, by default); it is part of every key that a value
    of it goes into.
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
    """Register a function `(prompt, response) -> float` under a name.

    `version()` returns what determines its values besides the code, such as the hash of a fitted model; left out, it
    is the hash of the source file that the function stands in.
    """

    def decorate(function: RewardFunction) -> RewardFunction:
        REWARDS.add(name, Reward(name, function, version or (lambda: _source_hash(function))), origin_of(function))
        return function

    return decorate


def find_reward(name: str) -> Reward:
    """Return the registered reward of this name, the function that `module:function` names, or a text classifier's.

    A classifier is named by a local folder or a hub id (see `harness.tasks.rewards.classifier`).
    The module is imported as Python would, from the working directory too. Raises `UserError` for a name that is
    neither (with the nearest), a module that cannot be imported, or a thing in it that cannot be called.
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
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # a user's module can raise anything, and its own words help most
        raise UserError(f"reward {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise UserError(f"reward {name!r} is not a function (it is a {type(function).__name__})")
    return Reward(name, function, lambda: _source_hash(function))


def _source_hash(function: Callable) -> str:
    file = Path(origin_of(function).rpartition(":")[0])
    return hash_source(file) if file.suffix == ".py" and file.is_file() else origin_of(function)
