"""What a run writes and a report reads: one record type per kind of file or row, and its place in the results folder.

The plan is in the experiment's folder; each cell has a folder `cells/KEY`, with one folder per stage (`stage_folder`).
Records are written and read by `harness.core.record_files`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from harness.core.config import ExperimentConfig
from harness.core.errors import one_line
from harness.core.prompt import Prompt

SFT = "sft"  # stands for the loss in the cell of the SFT policy, which every loss starts from
TRAIN, SAMPLE, MEASURE, JUDGE = "train", "sample", "measure", "judge"  # the stages of a cell
START = "start.json"  # in a trained cell's folder: the hash of the SFT policy that it started from, by file name
TEST = "test"  # the split of questions that is scored once; "dev" is used for model selection
COUNTED = ("ok", "tie")  # the statuses of judgements that have a preference


def cell_folder(results: Path, key: str) -> Path:
    """Return a cell's folder in the results folder of its experiment."""
    return results / "cells" / key


def stage_folder(stage: str, task: str = "", judge: str = "", split: str = TEST) -> str:
    """Return the name of a stage's folder, also used in messages: train, sample-hh, judge-hh@gpt.

    `judge` is the judge's name in a panel, or "" for a single judge. A split of questions other than "test" is part
    of the name: sample-dev-hh.
    """
    return "-".join(filter(None, (stage, "" if split == TEST else split, f"{task}@{judge}" if judge else task)))


def settings_text(settings: Mapping[str, object]) -> str:
    """Return hyper-parameters as "beta=0.1 temperature=0.5", which is how they are shown everywhere."""
    return one_line(" ".join(f"{name}={value}" for name, value in settings.items()))


@dataclass(frozen=True)
class Record:
    """The content of a file, or of each row of a file.

    `FILE` is the file's name; `IDENTITY` names the fields that together tell a row from all others, if any do.
    """

    FILE: ClassVar[str]
    IDENTITY: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class CellRecord(Record):
    """One policy, identified by its training task, loss, hyper-parameters and seed.

    - `key` names its folder; cells that differ only in the seed share a `point`.
    - `evaluated_on`: the tasks on whose test prompts it is sampled.
    - `reduction` (of a completion's token log-probs), `paper` (arXiv number) and `data` ("paired", "unpaired" or
      "listwise") describe the loss; all three are "" for the SFT policy.
    """

    FILE: ClassVar[str] = "cell.json"

    key: str
    trained_on: str
    loss: str
    settings: Mapping[str, object]
    seed: int
    reduction: str
    paper: str
    data: str
    evaluated_on: tuple[str, ...]
    point: str = ""


@dataclass(frozen=True, kw_only=True)
class PlanRecord(Record):
    """The plan of an experiment.

    - `baselines`: for each task, a description of what responses are judged against.
    - `decoding`: the sampling parameters that determine a response.
    - `judges`: for each task, the names of its judges; "" for a single judge. A plan without `judges` has one per task.
    - `starts`: for each training task, the key in the store of the SFT policy that its cells start from.
    - `setting`: a hash of how the policies are evaluated. The runs that share a report have it in common.
    """

    FILE: ClassVar[str] = "plan.json"

    experiment: str
    setting: str = ""
    baselines: Mapping[str, str]
    decoding: Mapping[str, object]
    judges: Mapping[str, list[str]] = field(default_factory=dict)
    starts: Mapping[str, str] = field(default_factory=dict)
    cells: tuple[CellRecord, ...]


@dataclass(frozen=True)
class ContentHashes:
    """Hashes of what a run read: the model, the encoder, and the data of each task."""

    model: str = ""
    encoder: str = ""
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Environment(Record):
    """Code, machine and versions of packages; of a cell's training also how its numbers were computed.

    `git` is None outside a checkout; `shared_prompt` says why completions of one prompt do not share a row, or "on".
    `numerics` are the device and the other choices that change a result by rounding and are in no key.
    """

    FILE: ClassVar[str] = "environment.json"

    git: Mapping[str, object] | None = None
    hardware: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str | None] = field(default_factory=dict)
    shared_prompt: str = ""
    numerics: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunManifest(Record):
    """The last run of an experiment that computed something.

    For each task, `counts` has the numbers of rows that were read, cut and dropped, `examples` a training example.
    """

    FILE: ClassVar[str] = "manifest.json"

    config: ExperimentConfig
    experiment: str = ""
    environment: Environment = field(default_factory=Environment)
    hashes: ContentHashes = field(default_factory=ContentHashes)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    examples: Mapping[str, tuple[SeenSequence, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class StepMetrics(Record):
    """Metrics at one training step; `split` is "dev" or "train", `step` counts optimiser steps.

    `loss` is in the loss's own unit. Log-ratios of policy to reference are means over responses, in nats; `margin` is
    chosen minus rejected, in nats, and `accuracy` the share of pairs with a margin above 0, where a margin that is 0
    within rounding counts 1/2. None means there are no such responses, or no pairs.
    """

    FILE: ClassVar[str] = "metrics.jsonl"

    split: str
    step: int
    loss: float
    chosen_logratio: float | None
    rejected_logratio: float | None
    margin: float | None
    accuracy: float | None


@dataclass(frozen=True)
class DevMetrics(StepMetrics):
    """Split "dev": over all dev data, after `step` steps. `kl` estimates KL(reference || policy) of a response, in
    nats."""

    kl: float


@dataclass(frozen=True)
class TrainMetrics(StepMetrics):
    """Split "train": over the batch of one step. `grad_norm` is before clipping, `seconds` are wall time, and `tokens`
    counts prompts and completions without padding."""

    learning_rate: float
    grad_norm: float
    seconds: float
    tokens: int


@dataclass(frozen=True)
class TrainSummary(Record):
    """The cost of a training run, and the dev metrics at its end (None for the SFT policy, which no loss trains).

    `steps` are optimiser steps, `examples` responses (counted each time they are seen), `tokens` the tokens of these
    examples, `forward_passes` sequences through the policy, and `seconds` the wall time spent in steps.
    """

    FILE: ClassVar[str] = "summary.json"

    steps: int = 0
    examples: int = 0
    tokens: int = 0
    forward_passes: int = 0
    seconds: float = 0.0
    dev: DevMetrics | None = None


@dataclass(frozen=True)
class Sample(Record):
    """A policy's response to a test prompt, and the baseline it is judged against.

    `ids` are the response's token ids and `tokens` their number; `finished` is whether the policy ended the response,
    rather than the length limit. `logp` and `reference_logp`, its log-probs under the policy and its reference, are
    sums over its tokens, in nats.
    """

    FILE: ClassVar[str] = "samples.jsonl"
    IDENTITY: ClassVar[tuple[str, ...]] = ("id",)

    id: str
    prompt: Prompt
    response: str
    ids: tuple[int, ...]
    baseline: str
    tokens: int
    finished: bool
    logp: float
    reference_logp: float


@dataclass(frozen=True)
class Measure(Record):
    """A response of the policy after the fraction `at` of its training steps, for tasks with a known reward.

    `reward` is in the task's own unit. `kl` is the response's log-ratio of policy to reference; `kl_exact` and
    `entropy` are the next-token KL and entropy summed over its positions. These and `reference_logp` are in nats.
    """

    FILE: ClassVar[str] = "rows.jsonl"
    IDENTITY: ClassVar[tuple[str, ...]] = ("at", "id")

    at: float
    id: str
    response: str
    tokens: int
    finished: bool
    reference_logp: float
    reward: float
    kl: float
    kl_exact: float
    entropy: float


@dataclass(frozen=True)
class Usage:
    """Tokens used by a remote judge's answers, and their price in USD (None if the price is unknown)."""

    prompt_tokens: int
    completion_tokens: int
    usd: float | None

    def __add__(self, other: Usage) -> Usage:
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        return Usage(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens, usd)


@dataclass(frozen=True)
class Judgement(Record):
    """A judge's answer to one comparison.

    - `status` is "ok", "tie", "refused", "unparsable" or "failed".
    - `preference`, for "ok" and "tie" only, is in [0, 1]: 1 for the policy's response, 0 for the baseline, 0.5 for a
      tie, and values in between if the judge reports its confidence.
    - `flipped`: whether the two orders gave opposite verdicts; `first`: the share of verdicts for the response shown
      first. Both are None if the judge does not depend on the order, or was asked in one order.
    - `detail` is the reason for a failure; `usage` is what the answers used when they were paid for.
    - `graded`: the share of its verdicts that come from log-probs, so that they lie between 0 and 1; the others are 0
      or 1. None for a judge without such verdicts.
    """

    FILE: ClassVar[str] = "judgements.jsonl"
    IDENTITY: ClassVar[tuple[str, ...]] = ("id",)

    id: str
    status: str
    preference: float | None
    flipped: bool | None = None
    detail: str = ""
    first: float | None = None
    usage: Usage | None = None
    graded: float | None = None


@dataclass(frozen=True)
class Agreement:
    """How often a judge agreed with the labels of `n` pairs it had not seen: a share in [0, 1] with a 95 % interval."""

    accuracy: float
    low: float
    high: float
    n: int
    labels: str


@dataclass(frozen=True)
class JudgeRecord(Record):
    """The judge. `id` names judge, version and template; `name` is its name in a panel, or "" for a single judge;
    `agreement` is None if it was not measured."""

    FILE: ClassVar[str] = "judge.json"

    id: str
    name: str = ""
    agreement: Agreement | None = None


@dataclass(frozen=True)
class SeenPart:
    """A part of a sequence; `trained` is whether the loss is computed on its tokens."""

    text: str
    trained: bool


@dataclass(frozen=True)
class SeenSequence:
    """One sequence as the model sees it in training.

    `role` is chosen, rejected, further response or demonstration. `parts` are its text in order. `tokens` counts all
    tokens, `trained` those that the loss is computed on.
    """

    role: str
    parts: tuple[SeenPart, ...]
    tokens: int
    trained: int


@dataclass(frozen=True)
class Failure(Record):
    """A stage of a cell that failed, and the reason in one line. A cell's file has a row for each.

    `stage` is a stage of a cell, or "sft" or "reference", which cells share. `task` is the task the cell was sampled,
    measured or judged on, `judge` the judge's name in a panel; "" if there is none. `split` is that of the questions.
    """

    FILE: ClassVar[str] = "failures.jsonl"

    stage: str
    reason: str
    task: str = ""
    judge: str = ""
    traceback: str = ""
    split: str = TEST

    @property
    def where(self) -> str:
        """The stage with its task, judge and split, as in `stage_folder`."""
        return stage_folder(self.stage, self.task, self.judge, self.split)
