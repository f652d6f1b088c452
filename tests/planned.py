"""The plan of an experiment file."""

from __future__ import annotations

from pathlib import Path

from harness.experiment.draft import draft_plan
from harness.experiment.file import load_experiment
from harness.experiment.plan import Plan, make_plan


def plan_of(path: Path, *overrides: str) -> Plan:
    """Return what a run of this file, with overrides, would carry out. Its model must be there."""
    draft = draft_plan(load_experiment(path, overrides))
    return make_plan(draft, draft.model)
