"""What a run was made of: its environment, configuration, hashes, and counts of rows cut or dropped."""

from __future__ import annotations

from dataclasses import asdict

from harness.core.environment import environment
from harness.experiment.plan import Plan


def describe_run(plan: Plan) -> dict:
    """Return the manifest of a run. Secrets are no part of a configuration, and none is read here.

    `environment` is that of the last run that computed something; each cell's `train/environment.json` is its own.
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
