"""The manifest of a run: environment, configuration, hashes, counts of changed or dropped rows, examples."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from harness.core.config import ExperimentConfig
from harness.core.environment import environment
from harness.core.errors import UserError
from harness.core.record_files import read_record
from harness.core.records import RunManifest
from harness.core.secrets import all_masked
from harness.core.store import write_json
from harness.experiment.plan import Plan
from harness.run.example import first_example


def write_manifest(plan: Plan, folder: Path, trains: bool) -> None:
    """Write the manifest of a run, unless it trains nothing and the one that is there has the same configuration.

    A run that finds everything done leaves it, with the environment in which it was computed.
    """
    path = folder / RunManifest.FILE
    try:
        before = read_record(RunManifest, folder).config
    except UserError:  # missing or damaged
        before = None
    if trains or before is None or _plain(before) != all_masked(_plain(plan.experiment)):
        write_json(path, all_masked(describe_run(plan)))


def _plain(config: ExperimentConfig) -> object:
    return json.loads(json.dumps(asdict(config)))


def describe_run(plan: Plan) -> dict:
    """Return the manifest of a run. Experiment files with secrets are refused, and no environment variable is read.

    `environment` describes the run that wrote it; a cell's own is in `train/environment.json`.
    """
    return {
        "experiment": plan.experiment.name,
        "config": asdict(plan.experiment),
        "environment": environment(),
        "hashes": {
            "model": plan.model_hash,
            "encoder": plan.encoder.hash,
            "data": {name: planned.hash for name, planned in plan.tasks.items()},
        },
        "counts": {name: dict(planned.prepared.counts) for name, planned in plan.tasks.items()},
        "examples": {
            name: [asdict(sequence) for sequence in first_example(planned, plan.renderer)]
            for name, planned in plan.tasks.items()
        },
    }
