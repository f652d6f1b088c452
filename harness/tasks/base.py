"""The types of a task's data (preferences and questions) and the registry of tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from harness.core.config import TaskConfig
from harness.core.hashing import hash_list, hash_value
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
    """A prompt with a chosen and a rejected completion, or only one of them (unpaired data; the other is None).

    A pair may have scores; a scored pair may also have `others`, further responses to its prompt for listwise losses.
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
        """The scores of chosen, rejected and the others, in this order; empty for a pair without scores."""
        if self.chosen_score is None or self.rejected_score is None:
            return ()
        return (self.chosen_score, self.rejected_score, *(other.score for other in self.others))


@dataclass(frozen=True)
class Question:
    """A prompt to sample a response to, and the baseline that the response is judged against."""

    id: str
    prompt: Prompt
    baseline: str


@dataclass(frozen=True)
class TaskData:
    """The data of a task. Each list is in a fixed pseudo-random order, and no prompt is in two splits.

    - `train`, `dev`: preferences to train on, and for dev metrics.
    - `test`: the questions that are scored once; `dev_questions`: questions on the prompts of `dev`, for selection.
    - `judge_fit`: pairs for fitting a preference model; no policy trains on them.
    - `judge_test`: pairs that neither policies nor that model have seen, for measuring how far a judge agrees with the
      labels.
    - `labels`: whose preferences these are; `counts`: the sizes of the splits and the dropped rows by reason.
    - `places`: where prompts (by `prompt_key`) stand in the source, for errors.
    """

    train: list[Preference]
    dev: list[Preference]
    test: list[Question]
    judge_fit: list[Preference]
    judge_test: list[Preference]
    labels: str
    counts: dict[str, int] = field(default_factory=dict)
    dev_questions: list[Question] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict, compare=False)

    @cached_property
    def hash(self) -> str:
        """A content hash of all of it, row by row. It does not depend on where the rows stand."""
        rows = {name: hash_list(map(_as_json, getattr(self, name))) for name in ROWS}
        return hash_value([rows, self.labels, self.counts])


ROWS = ("train", "dev", "test", "judge_fit", "judge_test", "dev_questions")


def _as_json(row: Preference | Question) -> dict:
    """Return a row as `dataclasses.asdict` does, in a tenth of its time."""
    values = dict(vars(row), prompt=[[turn.role, turn.content] for turn in row.prompt])
    if isinstance(row, Preference):
        values["others"] = [[other.text, other.score] for other in row.others]
    return values


@dataclass(frozen=True)
class Task:
    """A registered task.

    - `load(config)` reads the data.
    - `keep`: the part of an overlong prompt that is kept, "start" or "end"; `prompt_suffix` is appended to it (TL;DR's
      "TL;DR:").
    - `baseline`: a description of what the policies are judged against; `template`: the judge template's name.
    - `trains`: False for a task that only evaluates the policies of other tasks.
    - `outputs(samples, name)` returns a policy's responses in the format of the benchmark's own tools, which is saved
      with the samples as `model_outputs.json`; None if there is no such format.
    - `generates`: preferences are completions sampled from the SFT policy and labelled by a reward (see
      `harness.backbones.language_model.preferences`); completions in the data are demonstrations for SFT, and the
      baselines are the SFT policy's samples.
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
    """Return a decorator that registers `load(config) -> TaskData` as a task (see `Task` for the arguments)."""

    def decorate(load: Callable[[TaskConfig], TaskData]) -> Callable[[TaskConfig], TaskData]:
        task = Task(name, load, keep, baseline, template, trains, prompt_suffix, outputs, generates)
        TASKS.add(name, task, origin_of(load))
        return load

    return decorate
