"""The stage `judge`: a judge's verdicts on a policy's responses against the baseline's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from harness.core.record_files import read_records, write_record, write_records
from harness.core.records import COUNTED, JUDGE, SAMPLE, Judgement, JudgeRecord, Sample, stage_folder
from harness.core.store import Artifact, build_artifact, find_artifact, write_json
from harness.evaluation.alpaca_eval.difficulty import DIFFICULTY
from harness.experiment.cells import Cell
from harness.experiment.plan import Plan
from harness.run.judging import comparisons_of
from harness.run.stages.base import Stage, Target, for_each_evaluation
from harness.run.worker import Worker
from harness.training.base import Progress


def targets(plan: Plan, cell: Cell, splits: Sequence[str]) -> list[Target]:
    """Return one target for each evaluation and each judge of its task."""
    return [
        dataclasses.replace(target, judge=judge.name)
        for target in for_each_evaluation(plan, cell, splits)
        for judge in plan.resolved.judges_of(target.task)
    ]


def make(worker: Worker, cell: Cell, target: Target, progress: Progress) -> Artifact:
    """Judge a cell's responses. Missing verdicts are asked for again; earlier ones come from the judge's cache."""
    plan = worker.plan
    judge = worker.judge(cell.task, target.task, target.judge)
    samples = find_artifact(plan.folder(cell) / stage_folder(SAMPLE, target.task, split=target.split))
    choice = plan.resolved.judges[target.judge]
    inputs = {
        "judge": judge.id,
        "options": choice.kind.identity(choice.options),
        "samples": samples.manifest["files"][Sample.FILE],
    }

    def build(folder: Path) -> None:
        comparisons = comparisons_of(plan, target.task, target.split, samples)
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            progress(done, len(comparisons))

        write_records(folder, Judgement, judge.judge(comparisons, advance))
        write_record(folder, JudgeRecord(judge.id, target.judge, judge.agreement))
        if hasattr(judge, "difficulty") and (table := judge.difficulty(comparisons)):
            write_json(folder / DIFFICULTY, table)

    def complete(judged: Artifact) -> bool:
        return all(row.status in COUNTED for row in read_records(Judgement, judged.path))

    path = plan.folder(cell) / stage_folder(JUDGE, target.task, target.judge, target.split)
    return build_artifact(path, JUDGE, inputs, build, accept=complete)


STAGE = Stage(JUDGE, targets, make, alone=True)
