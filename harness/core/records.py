"""What a run leaves and a report reads: a record for each kind of file or row, and where in a results folder it lies.

The plan lies in the folder of an experiment; each cell has a folder `cells/KEY`, with one folder for each of its stages
(`stage_folder`). Records are written and read by `harness.core.record_files`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from harness.core.prompt import Prompt

SFT = "sft"  # the row of the policy that every loss starts from
TRAIN, SAMPLE, MEASURE, JUDGE = "train", "sample", "measure", "judge"  # the stages of a cell
TEST = "test"  # the split of questions that is scored once; "dev" is the one that selects
COUNTED = ("ok", "tie")  # the statuses of judgements that carry a preference


def cell_folder(results: Path, key: str) -> Path:
    """Return where a cell lies in the folder of its experiment."""
    return results / "cells" / key


def stage_folder(stage: str, task: str = "", judge: str = "", split: str = TEST) -> str:
    """Return what a stage's folder in its cell is called, and the stage in messages: train, sample-hh, judge-hh@gpt.

    `judge` is the name of a judge in a panel, "" where there is one judge. Of the splits of questions the one that is
    scored, "test", is not named: sample-dev-hh.
    """
    return "-".join(filter(None, (stage, "" if split == TEST else split, f"{task}@{judge}" if judge else task)))


@dataclass(frozen=True)
class Record:
    """What a file, or each row of a file, holds; `FILE` is the file's name."""

    FILE: ClassVar[str]


@dataclass(frozen=True)
class CellRecord(Record):
    """One policy, by its training task, loss, hyper-parameters and seed.

    `key` names its folder, and cells that differ in their seed alone have one `point`; `evaluated_on` are the tasks on
    whose test prompts it is sampled. Of the loss: `reduction` of the log-probs of a completion's tokens, the arXiv
    number of its `paper`, and the `data` that it trains on ("paired", "unpaired" or "listwise"). All three are "" for
    the SFT policy.
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
    """What an experiment asks for.

    `baselines`: for each task what responses are judged against, in words. `decoding`: the sampling parameters that
    determine a response. `judges`: for each task the names of its judges, "" where there is one (as everywhere in a
    plan without them). `setting` is a hash of what the runs that share a report have in common.
    """

    FILE: ClassVar[str] = "plan.json"

    experiment: str
    setting: str = ""
    baselines: Mapping[str, str]
    decoding: Mapping[str, object]
    judges: Mapping[str, list[str]] = field(default_factory=dict)
    cells: tuple[CellRecord, ...]


@dataclass(frozen=True)
class StepMetrics(Record):
    """What was measured at one step of training; `split` says which kind, `step` counts optimiser steps.

    `loss` has the unit of its loss. Log-ratios of policy to reference are means over responses, in nats; `margin` is
    chosen minus rejected, in nats, and `accuracy` the share of pairs whose margin is above 0. None: there are no such
    responses, or no pairs.
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
    """Split "train": of the batch of one step. The gradient's norm is that before clipping; `seconds` of wall time;
    `tokens` are those of its prompts and completions, without padding."""

    learning_rate: float
    grad_norm: float
    seconds: float
    tokens: int


@dataclass(frozen=True)
class TrainSummary(Record):
    """What a training took, and the dev metrics at its end (None for the SFT policy: nothing trained).

    `steps` of the optimiser, `examples` (responses, a repeated one again) and their `tokens`, `forward_passes`
    (sequences through the policy), `seconds` of wall time in steps.
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
    """A policy's response to a test prompt, and what it is judged against.

    `ids` are the response's tokens, `tokens` their number; `finished`: it ended by itself, not at the limit. The
    log-probs under the policy and its reference are sums over its tokens, in nats.
    """

    FILE: ClassVar[str] = "samples.jsonl"

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
    """Where the reward is known: a response of the policy after the share `at` of its steps.

    `reward` has the unit of its task. `kl` is the response's log-ratio of policy to reference; `kl_exact` and `entropy`
    are sums over its positions of the KL and the entropy of the next token; all in nats, as `reference_logp`.
    """

    FILE: ClassVar[str] = "rows.jsonl"

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
    """What a remote judge's answers used, and their price in USD (None where no price is known)."""

    prompt_tokens: int
    completion_tokens: int
    usd: float | None

    def __add__(self, other: Usage) -> Usage:
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        return Usage(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens, usd)


@dataclass(frozen=True)
class Judgement(Record):
    """A judge's answer to one comparison.

    `status` is "ok", "tie", "refused", "unparsable" or "failed"; only the first two carry a `preference` in [0, 1]: 1
    for the policy's response, 0 for the baseline, 0.5 for a tie, and what is between where the judge says how sure it
    is. `flipped`: the two orders gave opposite verdicts, and `first`: the share of its verdicts that went to the
    response shown first (both None where the judge does not depend on the order, or was asked in one). `detail` keeps
    the reason of a failure, `usage` what the answers used when they were paid for.
    """

    FILE: ClassVar[str] = "judgements.jsonl"

    id: str
    status: str
    preference: float | None
    flipped: bool | None = None
    detail: str = ""
    first: float | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class Agreement:
    """How often a judge agreed with labels on `n` pairs it had not seen: a share from 0 to 1 with a 95 % interval."""

    accuracy: float
    low: float
    high: float
    n: int
    labels: str


@dataclass(frozen=True)
class JudgeRecord(Record):
    """Who judged. `id` names judge, version and template; `name` is that in a panel, "" where there is
    one judge; `agreement` is None where it was not measured."""

    FILE: ClassVar[str] = "judge.json"

    id: str
    name: str = ""
    agreement: Agreement | None = None


@dataclass(frozen=True)
class Failure(Record):
    """The stage at which a cell failed, and why, in one line.

    `stage` is one of those of a cell, or "sft" or "reference", which cells share; `task` is the one it was sampled,
    measured or judged on, and `judge` the name of the judge in a panel; "" where there is none.
    """

    FILE: ClassVar[str] = "failed.json"

    stage: str
    reason: str
    task: str = ""
    judge: str = ""
    traceback: str = ""

    @property
    def where(self) -> str:
        """The stage in words, with its task and its judge."""
        return stage_folder(self.stage, self.task, self.judge)
