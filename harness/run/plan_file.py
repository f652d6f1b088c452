"""plan.json: the cells that a report shows. A run writes it; other seeds of the same experiment stay in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from harness.core.errors import UserError
from harness.core.hashing import hash_value
from harness.core.record_files import read_record, write_record
from harness.core.records import CellRecord, PlanRecord
from harness.experiment.plan import Plan


@dataclass(frozen=True)
class Earlier:
    """Other seeds of a run's cells that earlier runs planned: those that stay in the report, and those that leave it.

    `damaged` is set if plan.json could not be read, so that nothing is known of them.
    """

    kept: tuple[CellRecord, ...] = ()
    left: tuple[CellRecord, ...] = ()
    damaged: bool = False

    @property
    def lines(self) -> list[str]:
        """What a run says about them."""
        lines = []
        if self.kept:
            lines.append(f"{_count(self.kept)} of earlier runs of this experiment stay in its report")
        if self.left:
            lines.append(
                f"{_count(self.left)} of earlier runs leave the report, because the test questions, decoding or judges "
                "differ now; run all seeds together to have them in one table"
            )
        if self.damaged:
            lines.append(
                "plan.json was damaged and is replaced: cells of earlier runs leave the report; run their seeds too"
            )
        return lines


def write_plan(plan: Plan, judges: Mapping[str, str], folder: Path) -> Earlier:
    """Write a run's plan into the folder of its experiment; return what becomes of the cells of earlier runs.

    An earlier cell stays if it differs from one of this run's cells only in its seed and was evaluated in the same way:
    their rows then belong in one table. `judges` are the ids of this run's judges by training task, task and name.
    """
    record = replace(plan.description(), setting=setting_hash(plan, judges))
    keys, points = {cell.key for cell in record.cells}, {cell.point for cell in record.cells}
    with FileLock(folder / f".{PlanRecord.FILE}.lock"):  # of two runs that start together neither loses its cells
        try:
            before = read_record(PlanRecord, folder) if (folder / PlanRecord.FILE).is_file() else None
            damaged = False
        except UserError:
            before, damaged = None, True
        seeds = [cell for cell in before.cells if cell.key not in keys and cell.point in points] if before else []
        same = before is not None and before.setting == record.setting
        earlier = Earlier(tuple(seeds) if same else (), () if same else tuple(seeds), damaged)
        write_record(folder, replace(record, cells=(*record.cells, *earlier.kept)))
    return earlier


def setting_hash(plan: Plan, judges: Mapping[str, str]) -> str:
    """Return a hash of how policies are evaluated. How they are trained is in the point of each cell."""
    questions = {name: planned.prepared.questions["test"].hash for name, planned in plan.tasks.items()}
    sources = {name: judge.source for name, judge in plan.resolved.judges.items() if judge.source}
    return hash_value([plan.decoding, questions, dict(judges), *([sources] if sources else [])])


def _count(cells: tuple[CellRecord, ...]) -> str:
    seeds = ", ".join(map(str, sorted({cell.seed for cell in cells})))
    return f"{len(cells)} cells (seeds {seeds})"
