"""The stage `judge`: a judge's verdicts on a policy's responses against the baseline's."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from harness.core.errors import UserError
from harness.core.record_files import read_records, write_record, write_records
from harness.core.records import COUNTED, JUDGE, SAMPLE, Judgement, JudgeRecord, Sample, stage_folder
from harness.core.store import Artifact, build_artifact, find_artifact, write_json
from harness.evaluation.alpaca_eval.difficulty import DIFFICULTY
from harness.evaluation.base import Comparison, Judge
from harness.evaluation.missing import how_to_ask, why_missing
from harness.experiment.cells import Cell
from harness.experiment.plan import Plan
from harness.run.judging import comparisons_of
from harness.run.stages.base import Stage, Target, for_each_evaluation
from harness.run.worker import Worker
from harness.training.base import Progress

LEFT_OUT = "the judge gave no judgement"


def targets(plan: Plan, cell: Cell, splits: Sequence[str]) -> list[Target]:
    """Return one target for each evaluation and each judge of its task."""
    return [
        dataclasses.replace(target, judge=judge.name)
        for target in for_each_evaluation(plan, cell, splits)
        for judge in plan.resolved.judges_of(target.task)
    ]


def make(worker: Worker, cell: Cell, target: Target, progress: Progress) -> Artifact:
    """Judge a cell's responses. A verdict that is there stays; those that are missing are asked for again.

    Raises `UserError` if the judge gave no verdict at all, with the most frequent reason.
    """
    plan = worker.plan
    judge = worker.judge(cell.task, target.task, target.judge)
    samples = find_artifact(plan.folder(cell) / stage_folder(SAMPLE, target.task, split=target.split))
    choice = plan.resolved.judges[target.judge]
    inputs = {
        "judge": judge.id,
        "options": choice.kind.identity(choice.options),
        "samples": samples.manifest["files"][Sample.FILE],
        **({"source": choice.source} if choice.source else {}),
    }
    path = plan.folder(cell) / stage_folder(JUDGE, target.task, target.judge, target.split)
    asked = sorted(question.id for question in plan.tasks[target.task].prepared.questions[target.split].questions)
    rows: list[Judgement] = []  # as they were last read or written

    def build(folder: Path) -> None:
        before = find_artifact(path, inputs)
        verdicts = {row.id: row for row in _rows(before) if row.status in COUNTED} if before else {}
        comparisons = comparisons_of(plan, target.task, target.split, samples)
        missing = [comparison for comparison in comparisons if comparison.id not in verdicts]
        done = len(comparisons) - len(missing)

        def advance(more: int) -> None:
            nonlocal done
            done += more
            progress(done, len(comparisons))

        verdicts |= _by_id(judge, missing, judge.judge(missing, advance) if missing else [])
        rows[:] = [verdicts[comparison.id] for comparison in comparisons]
        write_records(folder, Judgement, rows)
        write_record(folder, JudgeRecord(judge.id, target.judge, judge.agreement))
        if hasattr(judge, "difficulty") and (table := judge.difficulty(comparisons)):
            write_json(folder / DIFFICULTY, table)

    def complete(judged: Artifact) -> bool:
        rows[:] = _rows(judged)
        return sorted(row.id for row in rows) == asked and all(row.status in COUNTED for row in rows)

    artifact = build_artifact(path, JUDGE, inputs, build, accept=complete)
    missing = [row for row in rows if row.status not in COUNTED]
    if len(missing) == len(rows):
        raise UserError(
            f"no verdict on any of {len(rows)} responses ({why_missing(rows)}); the next run asks again"
            f"{how_to_ask(rows, choice.options)}"
        )
    if missing:
        told = f"{len(missing)} of {len(rows)} verdicts are missing ({why_missing(rows)}); the next run asks for them"
        told += how_to_ask(rows, choice.options)
        worker.unjudged.append(f"{cell.label}: {path.name}: {told}")
    return artifact


def _rows(judged: Artifact) -> list[Judgement]:
    """Return the judgements of an artifact; none if they cannot be read, as those of an earlier version."""
    try:
        return read_records(Judgement, judged.path)
    except UserError:
        return []


def _by_id(judge: Judge, asked: Sequence[Comparison], given: Sequence[Judgement]) -> dict[str, Judgement]:
    """Return a judgement for each comparison; those that the judge left out are failed.

    Raises `UserError` for a judgement of something that was not asked, or two of the same.
    """
    judgements = {comparison.id: Judgement(comparison.id, "failed", None, detail=LEFT_OUT) for comparison in asked}
    for id, times in Counter(row.id for row in given).items():
        if id not in judgements or times > 1:
            what = "several judgements" if id in judgements else "a judgement that was not asked for"
            raise UserError(f"the judge {judge.id} gave {what} of {id!r}")
    return judgements | {row.id: row for row in given}


STAGE = Stage(JUDGE, targets, make, alone=True)
