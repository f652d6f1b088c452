"""The checks of judges against human labels (`python -m harness judge-check`): where they are kept, and what they say.

A check belongs to a judge's id, so it stands beside every result that the same judge, with the same template, gave.
"""

from __future__ import annotations

import re
from pathlib import Path

from harness.core.hashing import hash_value
from harness.core.store import read_json

FOLDER = "judge-checks"
NO_CHECK = "none was run"


def check_file(results: Path, judge: str, data: str) -> Path:
    """Return where the check of a judge on these data is or would be; `results` is the folder of all experiments."""
    return _folder(results, judge) / f"{_slug(data)}.json"


def checks_of(results: Path, judge: str) -> str:
    """Return the checks of a judge in words, each with its file below `results`; `NO_CHECK` where there is none."""
    found = []
    for path in sorted(_folder(results, judge).glob("*.json")):
        check = read_json(path)
        accuracy, low, high = (f"{100 * check[name]:.1f}" for name in ("accuracy", "low", "high"))
        found.append(f"{check['data']}: {accuracy} % [{low}, {high}] of {check['n']} ({path.relative_to(results)})")
    return "; ".join(found) or NO_CHECK


def _folder(results: Path, judge: str) -> Path:
    return Path(results) / FOLDER / f"{_slug(judge)[:60]}-{hash_value(judge)[:8]}"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")
