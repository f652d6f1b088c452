"""The manifest of a run: environment, configuration, hashes, and counts of rows truncated or dropped."""

from __future__ import annotations

from dataclasses import asdict

from harness.core.environment import environment
from harness.experiment.plan import Plan


def describe_run(plan: Plan) -> dict:
    """Return the manifest of a run. It holds no secrets: a configuration has none, and none are read here.

    `environment` describes the last run that computed something; a cell's own is in `train/environment.json`.
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
    }
