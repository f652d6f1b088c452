"""The stage `judge`: a judge's verdicts on a policy's responses against the baseline's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from harness.core.store import Artifact, build_artifact, find_artifact, read_jsonl, write_json, write_jsonl
from harness.evaluation.alpaca_eval.difficulty import DIFFICULTY
from harness.evaluation.base import COUNTED
from harness.experiment.cells import Cell
from harness.experiment.plan import Plan
from harness.run.judging import comparisons_of
from harness.run.stages.base import Stage, Target, evaluation_folder, for_each_evaluation
from harness.run.worker import Worker
from harness.training.base import Progress


def targets(plan: Plan, cell: Cell, splits: Sequence[str]) -> list[Target]:
    """Return each evaluation once for every judge of its task."""
    return [
        dataclasses.replace(target, judge=judge.name)
        for target in for_each_evaluation(plan, cell, splits)
        for judge in plan.resolved.judges_of(target.task)
    ]


def make(worker: Worker, cell: Cell, target: Target, progress: Progress) -> Artifact:
    """Judge a cell's responses. What is missing is asked again; what was answered is in the judge's cache."""
    plan = worker.plan
    judge = worker.judge(cell.task, target.task, target.judge)
    samples = find_artifact(plan.folder(cell) / evaluation_folder("sample", dataclasses.replace(target, judge="")))
    choice = plan.resolved.judges[target.judge]
    inputs = {
        "judge": judge.id,
        "options": choice.kind.identity(choice.options),
        "samples": samples.manifest["files"]["samples.jsonl"],
    }

    def build(folder: Path) -> None:
        comparisons = comparisons_of(plan, target.task, target.split, samples)
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            progress(done, len(comparisons))

        judgements = judge.judge(comparisons, advance)
        write_jsonl(folder / "judgements.jsonl", map(dataclasses.asdict, judgements))
        agreement = dataclasses.asdict(judge.agreement) if judge.agreement else None
        write_json(folder / "judge.json", {"id": judge.id, "name": target.judge, "agreement": agreement})
        if hasattr(judge, "difficulty") and (table := judge.difficulty(comparisons)):
            write_json(folder / DIFFICULTY, table)

    def complete(found: Artifact) -> bool:
        return all(row["status"] in COUNTED for row in read_jsonl(found.path / "judgements.jsonl"))

    path = plan.folder(cell) / evaluation_folder("judge", target)
    return build_artifact(path, "judge", inputs, build, accept=complete)


STAGE = Stage("judge", targets, make, alone=True)
