"""Runs all stages of one cell, the unit of work of a run."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from harness.core.errors import UserError
from harness.core.record_files import write_record, write_records
from harness.core.records import TEST, Failure
from harness.core.secrets import masked
from harness.experiment.cells import Cell
from harness.experiment.plan import Plan
from harness.run.stages import completions, judge, measure, reference, sample, sft, train, trunk
from harness.run.stages.base import Stage, Target
from harness.run.worker import Worker
from harness.training.base import Progress
from harness.training.processes import AloneError
from losses import RegistryError

TRAINING = [sft.STAGE, completions.STAGE, trunk.STAGE, reference.STAGE, train.STAGE]
EVALUATION = [sample.STAGE, measure.STAGE, judge.STAGE]
Show = Callable[[str], AbstractContextManager[Progress]]  # shows a stage under its label while it runs


def run_cell(
    plan: Plan, key: str, worker: Worker, show: Show | None = None, splits: Sequence[str] = (TEST,)
) -> list[Failure]:
    """Complete the cell with this key; return which stages failed and why, in order: none if every stage is done.

    Stages that are done are skipped, so the call can be repeated. Responses to the questions of `splits` are sampled,
    measured and judged. Failures are also kept beside the cell's results until the cell is run again. In another
    process or on another machine, the key is what tells the cell: the plan is made there from the same experiment.

    Raises `AloneError` if this process failed and the processes that share its batches did not.
    """
    cell = plan.cell(key)
    folder = plan.folder(cell)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / Failure.FILE).unlink(missing_ok=True)
    write_record(folder, plan.describe(cell))
    failures: list[Failure] = []
    trained = train.is_trained(worker, cell)
    for stage, target in stages_of(plan, cell, splits):
        if stage.shared and trained:
            continue
        try:
            failure = _make(stage, worker, cell, target, show or _silent)
        except AloneError as error:
            if not (folder / Failure.FILE).exists():  # the other processes fail after it: the first reason is kept
                write_records(folder, Failure, [*failures, failure_of(error, stage, target)])
            raise
        if failure:
            failures.append(failure)
            write_records(folder, Failure, failures)
            if not stage.alone:
                break
    return failures


def stages_of(plan: Plan, cell: Cell, splits: Sequence[str] = (TEST,)) -> Iterator[tuple[Stage, Target]]:
    """Yield the stages of a cell with their targets, in order: training, then each task's evaluation in turn."""
    for stage in TRAINING:
        for target in stage.targets(plan, cell, splits):
            yield stage, target
    of_each = [(stage, target) for stage in EVALUATION for target in stage.targets(plan, cell, splits)]
    yield from sorted(of_each, key=lambda item: (cell.evaluated_on.index(item[1].task), splits.index(item[1].split)))


def label(cell: Cell, stage: Stage, target: Target) -> str:
    """Return a readable name for a stage of a cell."""
    of = cell.task if stage.shared else cell.label
    return f"{of}: {' '.join(filter(None, (stage.name, target.words)))}"


def failure_of(error: BaseException, stage: Stage, target: Target) -> Failure:
    """Return an error as a `Failure`, with its reason in one line."""
    own_words = isinstance(error, (UserError, RegistryError, AloneError))
    reason = str(error) if own_words else f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]
    details = masked("".join(traceback.format_exception(error)))
    split = target.split if target.task else TEST  # a stage of the training names no questions
    return Failure(stage.name, masked(reason), target.task, target.judge, details, split)


def _make(stage: Stage, worker: Worker, cell: Cell, target: Target, show: Show) -> Failure | None:
    """Run a stage; return why it failed, or None. What raises stays within the cell, and the others go on.

    A shared stage that failed is not tried again by this worker: each cell of its task has the same failure.
    """
    tried = (cell.task, stage.name, target)
    if tried in worker.broken:
        return worker.broken[tried]
    try:
        with show(label(cell, stage, target)) as progress:
            stage.make(worker, cell, target, progress)
    except (AloneError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a loss or a judge may call sys.exit
        failure = failure_of(error, stage, target)
        if stage.shared:
            worker.broken[tried] = failure
        return failure
    return None


def _silent(label: str) -> AbstractContextManager[Progress]:
    return nullcontext(lambda done, total: None)
