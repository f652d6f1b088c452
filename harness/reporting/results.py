"""A results folder as pandas frames: what the plan asks for, and what of it there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from harness.core.errors import UserError
from harness.core.store import MANIFEST, read_json, read_jsonl
from harness.evaluation.alpaca_eval.difficulty import DIFFICULTY
from harness.evaluation.base import COUNTED, JUDGED, judging
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

    - `baselines`: what the policies of each task are judged against, in words; `decoding`: the sampling parameters.
    - `cells`: one row per cell: cell, trained_on, loss, settings, seed, reduction, paper, data, the summary of its
      training (steps, examples, tokens, forward_passes, seconds) and of its last evaluation on the dev pairs
      (dev_accuracy, dev_margin; NaN where there is none).
    - `evaluations`: one row per cell, task that it is evaluated on and judge of that task (judge_name: its name in a
      panel, "" where there is one): `IDENTITY`, state ("done", "not judged yet",
      "not run yet", "failed"), stage and reason of a failure, judge, judge_date (YYYY-MM-DD), its agreement with
      labels (judge_agreement, _low, _high, _n, _labels); judge_check: what `judge-check` found of it, in words;
      difficulty: the file of the table of difficulties that the judge brought ("" for most). Samples of another
      decoding count as not run yet.
    - `prompts`: one row per response and judge: `PROMPT_COLUMNS`. `preference` is NaN unless status is "ok" or "tie";
      `first` is the share of verdicts for the response shown first, NaN where the order is none; `kl` is the response's log-prob under the policy minus that under the reference, in nats.
    - `metrics`: one row per logged step: `METRIC_COLUMNS`; `split` is "train" (a batch) or "dev", log-ratios and
      their margin are in nats. The value of the loss is left out: it does not compare across losses.
    """

    experiment: str
    baselines: dict[str, str]
    decoding: dict
    cells: pd.DataFrame
    evaluations: pd.DataFrame
    prompts: pd.DataFrame
    metrics: pd.DataFrame


def load_results(folder: Path) -> Results:
    """Read a results folder. Raises `UserError` where there is no plan, or where a file is damaged."""
    folder = Path(folder)
    if not (folder / "plan.json").is_file():
        raise UserError(
            f"no results in {folder} (it has no plan.json); run it first: python -m harness run EXPERIMENT.yaml"
        )
    plan = _read(folder / "plan.json", read_json)
    cells, evaluations, prompts, metrics = [], [], [], []
    try:
        for cell in {cell["key"]: cell for cell in plan["cells"]}.values():  # a grid may name one setting twice
            path = folder / "cells" / cell["key"]
            failure = _read(path / "failed.json", read_json) if (path / "failed.json").is_file() else None
            cells.append(_cell(cell, path, failure))
            metrics.extend(_metrics(cell, path))
            for task, judge in _judgings(cell, plan):
                evaluation = _evaluation(cell, path, task, judge, failure, plan["decoding"])
                evaluations.append(evaluation)
                if evaluation["state"] in (DONE, NOT_JUDGED):
                    prompts.append(_prompts(evaluation, path))
        return Results(
            experiment=plan["experiment"],
            baselines=plan["baselines"],
            decoding=plan["decoding"],
            cells=pd.DataFrame(cells),
            evaluations=pd.DataFrame(evaluations),
            prompts=_stacked(prompts, PROMPT_COLUMNS),
            metrics=pd.DataFrame(metrics, columns=METRIC_COLUMNS),
        )
    except KeyError as missing:
        raise UserError(
            f"{folder}: the files there have no field {missing}; another version wrote them, run it again"
        ) from None


def settings_text(settings: Mapping) -> str:
    """Return hyper-parameters as "beta=0.1 temperature=0.5"."""
    return one_line(" ".join(f"{name}={value}" for name, value in settings.items()))


def one_line(text: object) -> str:
    """Return text without line breaks and control characters, fit for a cell of a table or a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def matrix(rows: pd.DataFrame, column: str, seeds: list, ids: list) -> np.ndarray:
    """Return `column` of per-prompt rows as a (seeds, prompts) array, NaN where there is no row or no value."""
    table = rows.pivot(index="seed", columns="id", values=column).reindex(index=seeds, columns=ids)
    return table.to_numpy(dtype=float, na_value=np.nan)


def _cell(cell: Mapping, path: Path, failure: Mapping | None) -> dict:
    summary = {}
    trained = failure is None or _stage(failure)[0] in ("sample", "judge")
    if trained and (path / "train/summary.json").is_file():
        summary = _read(path / "train/summary.json", read_json)
    dev = summary.get("dev") or {}
    return {
        **_identity(cell),
        "reduction": cell["reduction"],
        "paper": cell["paper"],
        "data": cell["data"],
        **{field: _number(summary.get(field)) for field in SUMMARY_FIELDS},
        **{f"dev_{field}": _number(dev.get(field)) for field in ("accuracy", "margin")},
    }


def _judgings(cell: Mapping, plan: Mapping) -> list[tuple[str, str]]:
    """Return the tasks that a cell is evaluated on, each with the names of its judges (an older plan has one judge)."""
    judges = plan.get("judges", {})
    return [(task, judge) for task in cell["evaluated_on"] for judge in judges.get(task, [""])]


def _evaluation(cell: Mapping, path: Path, task: str, name: str, failure: Mapping | None, decoding: Mapping) -> dict:
    """Say how far a cell is on one task. What an earlier run left behind and this one has not redone is not used."""
    folder = path / judging(task, name)
    samples, judgements = _manifest(path / f"sample-{task}"), _manifest(folder)
    sampled = bool(samples) and samples["inputs"]["decoding"] == decoding
    judged = sampled and bool(judgements) and judgements["inputs"]["samples"] == samples["files"]["samples.jsonl"]
    failed = bool(failure) and not (judged and _is_of_another(failure, task, name))
    state = FAILED if failed else NOT_RUN if not sampled else DONE if judged else NOT_JUDGED
    judge = _read(folder / "judge.json", read_json) if state == DONE else {}
    agreement = judge.get("agreement") or {}
    difficulty = folder / DIFFICULTY
    return {
        "evaluated_on": task,
        "judge_name": name,
        **_identity(cell),
        "state": state,
        "stage": one_line(failure["stage"]) if failed else "",
        "reason": one_line(failure["reason"]) if failed else "",
        "judge": one_line(judge["id"]) if judge else "",
        "judge_check": _check(path.parents[2], judge["id"]) if judge else "",
        "judge_date": judgements.get("created", "")[:10] if judge else "",
        "difficulty": str(difficulty) if judge and difficulty.is_file() else "",
        "judge_agreement": _number(agreement.get("accuracy")),
        "judge_agreement_low": _number(agreement.get("low")),
        "judge_agreement_high": _number(agreement.get("high")),
        "judge_agreement_n": _number(agreement.get("n")),
        "judge_agreement_labels": one_line(agreement.get("labels", "")),
    }


def _prompts(evaluation: Mapping, path: Path) -> pd.DataFrame:
    task = evaluation["evaluated_on"]
    samples = _read(path / f"sample-{task}/samples.jsonl", read_jsonl)
    judgements = {}
    if evaluation["state"] == DONE:
        folder = path / judging(task, evaluation["judge_name"])
        judgements = {row["id"]: row for row in _read(folder / "judgements.jsonl", read_jsonl)}
    rows = []
    for sample in samples:
        judgement = judgements.get(sample["id"], {"status": "not judged", "preference": None, "flipped": None})
        rows.append(
            {
                "id": sample["id"],
                "status": judgement["status"],
                "preference": _number(judgement["preference"]) if judgement["status"] in COUNTED else np.nan,
                "flipped": judgement["flipped"],
                "first": _number(judgement.get("first")),
                "tokens": sample["tokens"],
                "characters": len(sample["response"]),
                "baseline_characters": len(sample["baseline"]),
                "finished": sample["finished"],
                "kl": _number(sample["logp"]) - _number(sample["reference_logp"]),
            }
        )
    return pd.DataFrame(rows).assign(**{name: evaluation[name] for name in IDENTITY})


def _metrics(cell: Mapping, path: Path) -> list[dict]:
    file = path / "train/metrics.jsonl"
    rows = _read(file, read_jsonl) if file.is_file() else []
    return [
        {
            **_identity(cell),
            "split": row["split"],
            "step": row["step"],
            **{field: _number(row.get(field)) for field in METRIC_FIELDS},
        }
        for row in rows
    ]


def _identity(cell: Mapping) -> dict:
    return {
        "trained_on": cell["trained_on"],
        "loss": cell["loss"],
        "settings": settings_text(cell["settings"]),
        "seed": cell["seed"],
        "cell": cell["key"],
    }


def _manifest(path: Path) -> dict:
    """Return an artifact's manifest, empty where there is no artifact."""
    return _read(path / MANIFEST, read_json) if (path / MANIFEST).is_file() else {}


def _stage(failure: Mapping) -> tuple[str, str]:
    """Split the stage that failed into its name and its task ("judge-hh"); the task is "" where it names none.

    In a panel the judge's name stands behind the task ("judge-hh@gpt").
    """
    stage, _, task = failure["stage"].partition("-")
    return stage, task


def _check(results: Path, judge: str) -> str:
    return _read(results, lambda root: one_line(checks_of(root, judge)))


def _is_of_another(failure: Mapping, task: str, name: str) -> bool:
    """Whether a cell failed on another task, or by another judge of this one: what this judge did stands."""
    stage, target = _stage(failure)
    other_judge = stage == JUDGED and target.startswith(f"{task}@") and target != f"{task}@{name}"
    return target.partition("@")[0] not in ("", task) or other_judge


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _stacked(frames: list[pd.DataFrame], columns: Mapping[str, str]) -> pd.DataFrame:
    """Stack frames under fixed columns and types, so that an empty folder has them too."""
    stacked = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(columns))
    return stacked[list(columns)].astype(dict(columns))


def _read(path: Path, reader: Callable):
    try:
        return reader(path)
    except (OSError, ValueError) as error:  # ValueError: broken JSON or broken UTF-8
        raise UserError(
            f"{path}: cannot be read ({one_line(error)}); delete the folder {path.parent} and run again"
        ) from None
