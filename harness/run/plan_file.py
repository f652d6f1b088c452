"""plan.json: which cells a report shows. The driver of a run writes it; other seeds of the same experiment stay in it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from harness.core.config import ExperimentConfig
from harness.core.hashing import hash_value
from harness.core.record_files import read_record, write_record
from harness.core.records import CellRecord, PlanRecord
from harness.experiment.plan import Plan

# What two runs may differ in and still fill one report: more seeds and losses, from wherever they come.
MAY_DIFFER = ("name", "results", "figures", "plugins", "seeds", "losses")


def write_plan(plan: Plan, folder: Path) -> list[CellRecord]:
    """Write a run's plan into the folder of its experiment; return the cells of earlier runs that stay in it.

    A cell stays if it differs from one of this run's in its seed alone, and its experiment in nothing that changes
    how policies are trained or evaluated: then their rows belong in one table.
    """
    record = replace(plan.description(), setting=setting_hash(plan.experiment))
    before = read_record(PlanRecord, folder) if (folder / PlanRecord.FILE).is_file() else None
    kept = []
    if before and before.setting == record.setting:
        keys, points = {cell.key for cell in record.cells}, {cell.point for cell in record.cells}
        kept = [cell for cell in before.cells if cell.key not in keys and cell.point in points]
    write_record(folder, replace(record, cells=(*record.cells, *kept)))
    return kept


def setting_hash(experiment: ExperimentConfig) -> str:
    """Return a hash of what the runs that share a report have in common."""
    return hash_value({name: value for name, value in asdict(experiment).items() if name not in MAY_DIFFER})
