"""Everything that a results folder says about one cell, as JSON values: what `show` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from harness.core.config import ExperimentConfig, GenerateConfig, TaskConfig
from harness.core.record_files import check_key
from harness.core.records import COUNTED, TRAIN, Judgement
from harness.reporting.cell_files import CellFiles


def cell_facts(cell: CellFiles, samples: int) -> dict:
    """Return what is known about a cell, with its first `samples` responses on each task that it is evaluated on.

    `config` is the configuration of the last run that computed something; `inputs` is everything that determines the
    cell's policy; `differing` names the settings in which the two differ. What is missing is empty or None.
    """
    manifest, train = cell.experiment.manifest, cell.artifact(TRAIN) or {}
    inputs, config = train.get("inputs", {}), manifest.get("config", {})
    if train:
        check_key(cell.folder / TRAIN, train, cell.key)
    return {
        "key": cell.key,
        "label": cell.label,
        "experiment": cell.experiment.name,
        "folder": str(cell.folder),
        **{name: value for name, value in asdict(cell.record).items() if name not in ("key", "point")},
        "trained": train.get("created"),
        "failures": [{"where": failure.where, "reason": failure.reason} for failure in cell.failures],
        "config": config,
        "inputs": inputs,
        "differing": _differing(config, inputs),
        "hashes": manifest.get("hashes", {}),
        "files": train.get("files", {}),
        "counts": manifest.get("counts", {}),
        "example": manifest.get("examples", {}).get(cell.task, []),
        "environment": cell.environment,
        "summary": asdict(summary) if (summary := cell.summary) else {},
        "trajectory": [asdict(row) for row in cell.metrics],
        "evaluations": [_evaluation(cell, task, samples) for task in cell.record.evaluated_on],
    }


def changed_settings(config: Mapping) -> dict[str, object]:
    """Return the settings of a configuration that differ from the defaults, by dotted name."""
    tasks = {}
    for name, task in config.get("tasks", {}).items():
        generate = asdict(GenerateConfig()) if task.get("generate") else None
        tasks[name] = {**asdict(TaskConfig()), "generate": generate}
    defaults = _dotted({**asdict(ExperimentConfig()), "tasks": tasks})
    return {name: value for name, value in _dotted(config).items() if name not in defaults or value != defaults[name]}


def shown_steps(metrics: Sequence[Mapping], limit: int) -> list[Mapping]:
    """Return about `limit` rows of each split, evenly spaced and in order, including the first and the last."""
    keep = set()
    for split in {row["split"] for row in metrics}:
        places = [place for place, row in enumerate(metrics) if row["split"] == split]
        count = min(limit, len(places))
        keep |= {places[round(i * (len(places) - 1) / max(1, count - 1))] for i in range(count)}
    return [metrics[place] for place in sorted(keep)]


def _differing(config: Mapping, inputs: Mapping) -> list[str]:
    """Return the training dials whose value in the last run's configuration differs from the cell's."""
    own = {"train": inputs.get("train", {}), "sft": inputs.get("start", {}).get("sft", {})}
    return [
        f"{section}.{name}"
        for section, values in own.items()
        for name, value in values.items()
        if name in config.get(section, {}) and config[section][name] != value
    ]


def _evaluation(cell: CellFiles, task: str, count: int) -> dict:
    judges = {name: cell.judge(task, name) for name in cell.experiment.judges(task)}
    verdicts = {name: cell.judgements(task, name) for name in judges}
    rows = cell.samples(task)
    return {
        "task": task,
        "baseline": plan.baselines.get(task, "") if (plan := cell.experiment.plan) else "",
        "judges": {name: judge and judge.id for name, judge in judges.items()},
        "responses": len(rows),
        "win_rates": {name: rate for name, of_judge in verdicts.items() if (rate := _win_rate(of_judge))},
        "samples": [
            {
                **asdict(row),
                "verdicts": {name: asdict(by_id[row.id]) for name, by_id in verdicts.items() if row.id in by_id},
            }
            for row in rows[:count]
        ],
    }


def _win_rate(verdicts: Mapping[str, Judgement]) -> dict | None:
    """Return the mean preference of a judge's verdicts and their number; None where none carries a preference."""
    preferences = [row.preference for row in verdicts.values() if row.status in COUNTED]
    return {"win_rate": sum(preferences) / len(preferences), "n": len(preferences)} if preferences else None


def _dotted(values: Mapping, prefix: str = "") -> dict[str, object]:
    dotted: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            dotted |= _dotted(value, f"{prefix}{name}.")
        else:
            dotted[f"{prefix}{name}"] = value
    return dotted
