"""The vocabulary of tasks: prompts, preferences, questions, and the registry that names the tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from harness.core.config import TaskConfig
from harness.core.prompt import Prompt
from harness.core.records import Sample
from losses.registry import Registry, origin_of


@dataclass(frozen=True)
class Scored:
    """A response with its score; higher is better, on the data set's own scale."""

    text: str
    score: float


@dataclass(frozen=True)
class Preference:
    """A prompt with the completion that was preferred, the one that was not, or (unpaired data) only one of them.

    A pair may have scores, and then `others`: further responses to its prompt, for listwise losses.
    """

    prompt: Prompt
    chosen: str | None
    rejected: str | None
    chosen_score: float | None = None
    rejected_score: float | None = None
    others: tuple[Scored, ...] = ()

    @property
    def paired(self) -> bool:
        return self.chosen is not None and self.rejected is not None

    @property
    def scores(self) -> tuple[float, ...]:
        """The scores of chosen, rejected and the others; none where the pair has none."""
        if self.chosen_score is None or self.rejected_score is None:
            return ()
        return (self.chosen_score, self.rejected_score, *(other.score for other in self.others))


@dataclass(frozen=True)
class Question:
    """A prompt to sample on, and the response that the policy's is judged against."""

    id: str
    prompt: Prompt
    baseline: str


@dataclass(frozen=True)
class TaskData:
    """What a task holds, each list in a fixed pseudo-random order, no prompt in two splits.

    `test` are the questions that are scored once; `dev_questions` are those that select, on the prompts of `dev`.
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
    dev_questions: list[Question] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """A registered task.

    - `load(config)` reads the data.
    - `keep`: which part of a too long prompt is kept, "start" or "end"; `prompt_suffix` is put behind the part
      that is kept (TL;DR's "TL;DR:").
    - `baseline`: what the policies are judged against, in words; `template`: the judge template's name.
    - `trains`: false for a task that only evaluates the policies of another.
    - `outputs(samples, name)` returns a policy's responses in the format of the benchmark's own
      tools, which is written beside them (`model_outputs.json`); None where there is no such format.
    - `generates`: its completions are sampled from the SFT policy and labelled by a reward (see `harness.backbones.language_model.preferences`);
      those in its data are demonstrations for SFT. Baselines are the SFT policy's samples.
    """

    name: str
    load: Callable[[TaskConfig], TaskData]
    keep: str
    baseline: str
    template: str
    trains: bool = True
    prompt_suffix: str = ""
    outputs: Callable[[Sequence[Sample], str], list[dict]] | None = None
    generates: bool = False


TASKS: Registry[Task] = Registry("task")


def register_task(
    name: str,
    *,
    keep: str,
    baseline: str,
    template: str,
    trains: bool = True,
    prompt_suffix: str = "",
    outputs: Callable[[Sequence[Sample], str], list[dict]] | None = None,
    generates: bool = False,
) -> Callable[[Callable[[TaskConfig], TaskData]], Callable[[TaskConfig], TaskData]]:
    """Register a function from a task's configuration to its data (see `Task` for the arguments)."""

    def decorate(load: Callable[[TaskConfig], TaskData]) -> Callable[[TaskConfig], TaskData]:
        task = Task(name, load, keep, baseline, template, trains, prompt_suffix, outputs, generates)
        TASKS.add(name, task, origin_of(load))
        return load

    return decorate
