"""What a run was made of: versions, hardware, commit, configuration, hashes, and counts of rows cut or dropped."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from harness.plan import Plan

PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "peft",
    "accelerate",
    "alpaca-eval",
    "openai",
    "pandas",
    "numpy",
    "scipy",
    "scikit-learn",
    "matplotlib",
    "omegaconf",
)


def describe_run(plan: Plan, counts: Mapping[str, Mapping[str, int]]) -> dict:
    """Return the manifest of a run. Secrets are no part of a configuration, and none is read here."""
    return {
        "experiment": plan.experiment.name,
        "config": asdict(plan.experiment),
        "git": _git(),
        "hardware": _hardware(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "hashes": {
            "model": plan.model_hash,
            "encoder": plan.encoder.hash,
            "data": {name: planned.hash for name, planned in plan.tasks.items()},
        },
        "counts": {name: dict(task_counts) for name, task_counts in counts.items()},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict | None:
    """Return the commit of the harness's checkout and whether it was changed since; None outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _hardware() -> dict:
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
