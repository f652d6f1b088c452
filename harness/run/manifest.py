"""The manifest of a run: environment, configuration, hashes, counts of changed or dropped rows, examples."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from harness.core.environment import environment
from harness.core.secrets import all_masked
from harness.core.store import read_json, write_json
from harness.experiment.plan import Plan
from harness.run.example import first_example


def write_manifest(plan: Plan, folder: Path, trains: bool) -> None:
    """Write the manifest of a run, unless it trains nothing and the one that is there has the same configuration.

    A run that finds everything done leaves it, with the environment in which it was computed.
    """
    path, config = folder / "manifest.json", all_masked(json.loads(json.dumps(asdict(plan.experiment))))
    try:
        before = read_json(path)["config"]
    except (OSError, ValueError, KeyError, TypeError):  # missing or damaged
        before = None
    if trains or before != config:
        write_json(path, all_masked(describe_run(plan)))


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
