"""Checks of judges against human labels (`python -m harness judge-check`): where they are stored, and their summary.

A check belongs to a judge's id, so it is shown with every result of the same judge with the same template.
"""

from __future__ import annotations

import re
from pathlib import Path

from harness.core.hashing import hash_value
from harness.core.store import read_json

FOLDER = "judge-checks"
NO_CHECK = "none was run"


def check_file(results: Path, judge: str, data: str) -> Path:
    """Return the path of a judge's check on these data; `results` is the folder of all experiments."""
    return _folder(results, judge) / f"{_slug(data)}.json"


def checks_of(results: Path, judge: str) -> str:
    """Return a summary of a judge's checks, each with its file below `results`; `NO_CHECK` if there is none."""
    checks = []
    for path in sorted(_folder(results, judge).glob("*.json")):
        check = read_json(path)
        accuracy, low, high = (f"{100 * check[name]:.1f}" for name in ("accuracy", "low", "high"))
        checks.append(f"{check['data']}: {accuracy} % [{low}, {high}] of {check['n']} ({path.relative_to(results)})")
    return "; ".join(checks) or NO_CHECK


def _folder(results: Path, judge: str) -> Path:
    return Path(results) / FOLDER / f"{_slug(judge)[:60]}-{hash_value(judge)[:8]}"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")
