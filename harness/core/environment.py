"""The machine and the code behind a result: commit, versions, hardware."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

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


def environment() -> dict:
    """Return commit, versions and hardware; no secrets and no environment variables."""
    return {
        "git": _git(),
        "hardware": _hardware(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def version(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict | None:
    """Return the commit of the harness's checkout and whether files have changed since; None outside a checkout."""
    here = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        # Fails where the harness is installed inside another project's checkout, whose commit is not ours.
        git("ls-files", "--error-unmatch", "core/environment.py")
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", ".", "../losses"))}
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
