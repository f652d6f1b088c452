"""plan.json: the cells that a report shows. A run writes it; other seeds of the same experiment stay in it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from filelock import FileLock

from harness.core.config import ExperimentConfig
from harness.core.errors import UserError
from harness.core.hashing import hash_value
from harness.core.record_files import read_record, write_record
from harness.core.records import CellRecord, PlanRecord
from harness.experiment.plan import Plan

# Keys that may differ between runs that share a report: a run may add seeds, and losses from other plugins.
MAY_DIFFER = ("name", "results", "figures", "plugins", "seeds", "losses")


def write_plan(plan: Plan, folder: Path) -> list[CellRecord]:
    """Write a run's plan into the folder of its experiment; return the cells of earlier runs that stay in it.

    An earlier cell stays if it differs from one of this run's cells only in its seed, and if nothing that changes how
    policies are trained or evaluated differs between the experiments: their rows then belong in one table.
    """
    record = replace(plan.description(), setting=setting_hash(plan.experiment))
    keys, points = {cell.key for cell in record.cells}, {cell.point for cell in record.cells}
    with FileLock(folder / f".{PlanRecord.FILE}.lock"):  # of two runs that start together neither loses its cells
        before = _written_before(folder)
        kept = []
        if before and before.setting == record.setting:
            kept = [cell for cell in before.cells if cell.key not in keys and cell.point in points]
        write_record(folder, replace(record, cells=(*record.cells, *kept)))
    return kept


def _written_before(folder: Path) -> PlanRecord | None:
    """Return the plan of earlier runs; None if there is none, or if it cannot be read and is to be replaced."""
    try:
        return read_record(PlanRecord, folder) if (folder / PlanRecord.FILE).is_file() else None
    except UserError:
        return None


def setting_hash(experiment: ExperimentConfig) -> str:
    """Return a hash of the keys that must be equal between runs that share a report."""
    return hash_value({name: value for name, value in asdict(experiment).items() if name not in MAY_DIFFER})
