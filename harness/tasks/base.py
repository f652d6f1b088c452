"""The vocabulary of tasks: prompts, preferences, questions, and the registry that names the tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from harness.config import TaskConfig
from losses.registry import Registry, origin_of


@dataclass(frozen=True)
class Message:
    """One turn of a dialogue; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


Prompt = tuple[Message, ...]


@dataclass(frozen=True)
class Preference:
    """A prompt with the completion that was preferred, the one that was not, or (unpaired data) only one of them."""

    prompt: Prompt
    chosen: str | None
    rejected: str | None

    @property
    def paired(self) -> bool:
        return self.chosen is not None and self.rejected is not None


@dataclass(frozen=True)
class Question:
    """A prompt to sample on, and the response that the policy's is judged against."""

    id: str
    prompt: Prompt
    baseline: str


@dataclass(frozen=True)
class TaskData:
    """What a task holds, each list in a fixed pseudo-random order, no prompt in two splits.

    `judge_fit` are pairs to fit a preference model on, which no policy trains on; `judge_test` are pairs that
    neither has seen, to measure a judge's agreement with the labels. `labels` says whose preferences these are.
    """

    train: list[Preference]
    dev: list[Preference]
    test: list[Question]
    judge_fit: list[Preference]
    judge_test: list[Preference]
    labels: str
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A registered task.

    - `load(config)` reads the data.
    - `keep`: which part of a too long prompt is kept, "start" or "end"; `prompt_suffix` is put behind the part
      that is kept (TL;DR's "TL;DR:").
    - `baseline`: what the policies are judged against, in words; `template`: the judge template's name.
    - `trains`: false for a task that only evaluates the policies of another.
    """

    name: str
    load: Callable[[TaskConfig], TaskData]
    keep: str
    baseline: str
    template: str
    trains: bool = True
    prompt_suffix: str = ""


TASKS: Registry[Task] = Registry("task")


def register_task(
    name: str, *, keep: str, baseline: str, template: str, trains: bool = True, prompt_suffix: str = ""
) -> Callable[[Callable[[TaskConfig], TaskData]], Callable[[TaskConfig], TaskData]]:
    """Register a function from a task's configuration to its data (see `Task` for the arguments)."""

    def decorate(load: Callable[[TaskConfig], TaskData]) -> Callable[[TaskConfig], TaskData]:
        TASKS.add(name, Task(name, load, keep, baseline, template, trains, prompt_suffix), origin_of(load))
        return load

    return decorate
