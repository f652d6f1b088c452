"""plan.json: which cells a report shows. The driver of a run writes it; other seeds of the same experiment stay in it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from harness.core.config import ExperimentConfig
from harness.core.hashing import hash_value
from harness.core.store import read_json, write_json
from harness.experiment.plan import Plan

PLAN = "plan.json"
# What two runs may differ in and still fill one report: more seeds and losses, from wherever they come.
MAY_DIFFER = ("name", "results", "figures", "plugins", "seeds", "losses")


def write_plan(plan: Plan, folder: Path) -> list[dict]:
    """Write a run's plan; return the cells of earlier runs that stay in it, as the file holds them.

    A cell stays if it differs from one of this run's in its seed alone, and its experiment in nothing that changes
    how policies are evaluated: then their rows belong in one table.
    """
    described = {**plan.description(), "setting": setting_hash(plan.experiment)}
    before = read_json(folder / PLAN) if (folder / PLAN).is_file() else {}
    kept = []
    if before.get("setting") == described["setting"]:
        keys, points = ({cell[name] for cell in described["cells"]} for name in ("key", "point"))
        kept = [cell for cell in before["cells"] if cell["key"] not in keys and cell["point"] in points]
    write_json(folder / PLAN, {**described, "cells": described["cells"] + kept})
    return kept


def setting_hash(experiment: ExperimentConfig) -> str:
    """Return a hash of what the runs that share a report have in common."""
    return hash_value({name: value for name, value in asdict(experiment).items() if name not in MAY_DIFFER})
