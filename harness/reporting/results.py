"""A results folder as pandas frames: what the plan asks for, and how much of it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from harness.core.errors import UserError, one_line
from harness.core.record_files import (
    REMEDY,
    check_key,
    is_of_samples,
    manifest_of,
    read_failures,
    read_metrics,
    read_record,
    read_records,
)
from harness.core.records import (
    COUNTED,
    JUDGE,
    MEASURE,
    SAMPLE,
    TEST,
    TRAIN,
    CellRecord,
    Failure,
    Judgement,
    JudgeRecord,
    PlanRecord,
    Sample,
    TrainSummary,
    cell_folder,
    settings_text,
    stage_folder,
)
from harness.evaluation.alpaca_eval.difficulty import DIFFICULTY
from harness.reporting.judge_checks import checks_of

DONE, NOT_JUDGED, NOT_RUN, FAILED = "done", "not judged yet", "not run yet", "failed"
IDENTITY = ["evaluated_on", "judge_name", "trained_on", "loss", "settings", "seed", "cell"]
TABLE = ["evaluated_on", "judge_name", "trained_on"]  # one leaderboard: the same prompts, judge and training data
POLICY = ["trained_on", "loss", "settings"]  # one configuration, over its seeds
PROMPT_COLUMNS = {
    **dict.fromkeys(IDENTITY, "str"),
    "seed": "int64",
    "id": "str",
    "status": "str",
    "preference": "float64",
    "flipped": "boolean",  # with a third value: missing
    "first": "float64",
    "graded": "float64",
    "tokens": "int64",
    "characters": "int64",
    "baseline_characters": "int64",
    "finished": "boolean",
    "kl": "float64",
}
SUMMARY_FIELDS = ("steps", "examples", "tokens", "forward_passes", "seconds")
METRIC_FIELDS = ("accuracy", "margin", "grad_norm", "chosen_logratio", "rejected_logratio", "kl")
METRIC_COLUMNS = ["trained_on", "loss", "settings", "seed", "cell", "split", "step", *METRIC_FIELDS]


@dataclass(frozen=True)
class Results:
    """What a results folder holds, restricted to the cells that its plan asks for and in the plan's order.

    - `baselines`: a description of what the policies of each task are judged against; `decoding`: the sampling
      parameters.
    - `cells`: one row per cell: cell, trained_on, loss, settings, seed, reduction, paper, data, the summary of its
      training (steps, examples, tokens, forward_passes, seconds) and of its last evaluation on the dev pairs
      (dev_accuracy, dev_margin; NaN if there is none).
    - `evaluations`: one row per cell, task that it is evaluated on and judge of that task (judge_name: its name in a
      panel, "" for a single judge): `IDENTITY`, state ("done", "not judged yet", "not run yet", "failed"), stage and
      reason of a failure, judge, judge_date (YYYY-MM-DD), its agreement with labels (judge_agreement, _low, _high, _n,
      _labels); judge_check: a summary of its `judge-check` results; difficulty: the file of the table of difficulties
      that the judge supplied ("" for most). Samples with another decoding count as not run yet.
    - `prompts`: one row per response and judge: `PROMPT_COLUMNS`. `preference` is NaN unless status is "ok" or "tie";
      `first` is the share of verdicts for the response shown first, NaN if there is no order; `graded` the share that
      comes from the judge's log-probs, NaN if it has none; `kl` is the response's log-prob under the policy minus that
      under the reference, in nats.
    - `metrics`: one row per logged step: `METRIC_COLUMNS`; `split` is "train" (a batch) or "dev", log-ratios and
      their margin are in nats. The loss is left out, because its value is not comparable across losses.
    """

    experiment: str
    baselines: dict[str, str]
    decoding: dict
    cells: pd.DataFrame
    evaluations: pd.DataFrame
    prompts: pd.DataFrame
    metrics: pd.DataFrame


def load_results(folder: Path) -> Results:
    """Read a results folder.

    Raises `UserError` if there is no plan, if a file is damaged, or if a policy is that of another cell.
    """
    folder = Path(folder)
    plan = read_plan(folder)
    cells, evaluations, prompts, metrics = [], [], [], []
    for cell in plan.cells:
        path = cell_folder(folder, cell.key)
        failures = read_failures(path)
        if trained := manifest_of(path / TRAIN):
            check_key(path / TRAIN, trained, cell.key)
        cells.append(_cell(cell, path, failures))
        metrics.extend(_metrics(cell, path))
        for task, judge in _judgings(cell, plan):
            evaluation = _evaluation(cell, path, task, judge, failures, plan.decoding)
            evaluations.append(evaluation)
            if evaluation["state"] in (DONE, NOT_JUDGED):
                prompts.append(_prompts(evaluation, path))
    return Results(
        experiment=plan.experiment,
        baselines=dict(plan.baselines),
        decoding=dict(plan.decoding),
        cells=pd.DataFrame(cells),
        evaluations=pd.DataFrame(evaluations),
        prompts=_stacked(prompts, PROMPT_COLUMNS),
        metrics=pd.DataFrame(metrics, columns=METRIC_COLUMNS),
    )


def read_plan(folder: Path) -> PlanRecord:
    """Read the plan of a results folder, with each cell once: a plan of an earlier version may name one twice."""
    if not (folder / PlanRecord.FILE).is_file():
        raise UserError(
            f"no results in {folder} (it has no plan.json); run it first: python -m harness run EXPERIMENT.yaml"
        )
    plan = read_record(PlanRecord, folder)
    if not plan.cells or not {task for cell in plan.cells for task in cell.evaluated_on} <= plan.baselines.keys():
        raise UserError(f"{folder / PlanRecord.FILE}: it names no cells, or a task without its baseline; {REMEDY}")
    return replace(plan, cells=tuple({cell.key: cell for cell in plan.cells}.values()))


def matrix(rows: pd.DataFrame, column: str, seeds: list, ids: list) -> np.ndarray:
    """Return `column` of per-prompt rows as a (seeds, prompts) array, NaN if there is no row or no value."""
    table = rows.pivot(index="seed", columns="id", values=column).reindex(index=seeds, columns=ids)
    return table.to_numpy(dtype=float, na_value=np.nan)


def _cell(cell: CellRecord, path: Path, failures: Sequence[Failure]) -> dict[str, object]:
    summary = None
    trained = all(failure.stage in (SAMPLE, MEASURE, JUDGE) for failure in failures)
    if trained and (path / TRAIN / TrainSummary.FILE).is_file():
        summary = read_record(TrainSummary, path / TRAIN)
    dev = summary.dev if summary else None
    return {
        **_identity(cell),
        "reduction": cell.reduction,
        "paper": cell.paper,
        "data": cell.data,
        **{field: _number(summary, field) for field in SUMMARY_FIELDS},
        **{f"dev_{field}": _number(dev, field) for field in ("accuracy", "margin")},
    }


def _judgings(cell: CellRecord, plan: PlanRecord) -> list[tuple[str, str]]:
    """Return the tasks that a cell is evaluated on, each with the names of its judges (an older plan has one judge)."""
    return [(task, judge) for task in cell.evaluated_on for judge in plan.judges.get(task, [""])]


def _evaluation(
    cell: CellRecord, path: Path, task: str, name: str, failures: Sequence[Failure], decoding: Mapping[str, object]
) -> dict[str, object]:
    """Return the state of a cell on one task. Results of an earlier run that are outdated are not used."""
    folder = path / stage_folder(JUDGE, task, name)
    samples, judgements = manifest_of(path / stage_folder(SAMPLE, task)) or {}, manifest_of(folder) or {}
    sampled = bool(samples) and samples["inputs"].get("decoding") == decoding
    judged = sampled and bool(judgements) and is_of_samples(judgements, samples)
    failure = _failure_of(failures, task, name, judged)
    state = FAILED if failure else NOT_RUN if not sampled else DONE if judged else NOT_JUDGED
    judge = read_record(JudgeRecord, folder) if state == DONE else None
    agreement = judge.agreement if judge else None
    difficulty = folder / DIFFICULTY
    return {
        "evaluated_on": task,
        "judge_name": name,
        **_identity(cell),
        "state": state,
        "stage": one_line(failure.where) if failure else "",
        "reason": one_line(failure.reason) if failure else "",
        "judge": one_line(judge.id) if judge else "",
        "judge_check": one_line(checks_of(path.parents[2], judge.id)) if judge else "",
        "judge_date": judgements.get("created", "")[:10] if judge else "",
        "difficulty": str(difficulty) if judge and difficulty.is_file() else "",
        "judge_agreement": _number(agreement, "accuracy"),
        "judge_agreement_low": _number(agreement, "low"),
        "judge_agreement_high": _number(agreement, "high"),
        "judge_agreement_n": _number(agreement, "n"),
        "judge_agreement_labels": one_line(agreement.labels) if agreement else "",
    }


def _prompts(evaluation: Mapping, path: Path) -> pd.DataFrame:
    task = evaluation["evaluated_on"]
    judgements = {}
    if evaluation["state"] == DONE:
        folder = path / stage_folder(JUDGE, task, evaluation["judge_name"])
        judgements = {judgement.id: judgement for judgement in read_records(Judgement, folder)}
    rows = []
    for sample in read_records(Sample, path / stage_folder(SAMPLE, task)):
        judgement = judgements.get(sample.id, Judgement(sample.id, "not judged", None))
        rows.append(
            {
                "id": sample.id,
                "status": judgement.status,
                "preference": _number(judgement, "preference") if judgement.status in COUNTED else np.nan,
                "flipped": judgement.flipped,
                "first": _number(judgement, "first"),
                "graded": _number(judgement, "graded"),
                "tokens": sample.tokens,
                "characters": len(sample.response),
                "baseline_characters": len(sample.baseline),
                "finished": sample.finished,
                "kl": sample.logp - sample.reference_logp,
            }
        )
    return pd.DataFrame(rows).assign(**{name: evaluation[name] for name in IDENTITY})


def _metrics(cell: CellRecord, path: Path) -> list[dict[str, object]]:
    return [
        {
            **_identity(cell),
            "split": row.split,
            "step": row.step,
            **{field: _number(row, field) for field in METRIC_FIELDS},
        }
        for row in read_metrics(path / TRAIN)
    ]


def _identity(cell: CellRecord) -> dict[str, object]:
    return {
        "trained_on": cell.trained_on,
        "loss": cell.loss,
        "settings": settings_text(cell.settings),
        "seed": cell.seed,
        "cell": cell.key,
    }


def _failure_of(failures: Sequence[Failure], task: str, name: str, judged: bool) -> Failure | None:
    """Return why a judge's results on a task's test questions are missing, or None if nothing failed on the way.

    A failure on another task, with another judge or on dev questions leaves results that are there valid. One of a
    stage before the judges ended the cell, so that what is missing after it is missing because of it.
    """
    own = [f for f in failures if f.split == TEST and f.task in ("", task) and f.judge in ("", name)]
    ended = [] if judged else [f for f in failures if f.stage != JUDGE]
    return next(iter([*own, *ended]), None)


def _number(record: object, field: str) -> float:
    """Return a field of a record as a float; NaN if it is None or missing, or if there is no record."""
    value = getattr(record, field, None)
    return np.nan if value is None else float(value)


def _stacked(frames: list[pd.DataFrame], columns: Mapping[str, str]) -> pd.DataFrame:
    """Concatenate frames with fixed columns and types, so that an empty folder has them too."""
    stacked = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(columns))
    return stacked[list(columns)].astype(dict(columns))
