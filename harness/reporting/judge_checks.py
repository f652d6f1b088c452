"""Checks of judges against human labels (`python -m harness judge-check`): where they are stored, and their summary.

A check belongs to a judge's id, so it is shown with every result of the same judge with the same template. A check of
the first comparisons only (`--limit`) has a file of its own: it never replaces the check of all of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from harness.core.hashing import hash_value
from harness.core.store import read_json

FOLDER = "judge-checks"
NO_CHECK = "none was run"


def check_file(results: Path, judge: str, data: str, limit: int | None = None) -> Path:
    """Return the path of a judge's check on these data; `results` is the folder of all experiments.

    `limit`: the number of comparisons, if not all were checked.
    """
    name = data if data == _slug(data)[:60] else _told_apart(data)
    return _folder(results, judge) / f"{name}{'' if limit is None else f'-first-{limit}'}.json"


def checks_of(results: Path, judge: str) -> str:
    """Return a summary of a judge's checks, each with its file below `results`; `NO_CHECK` if there is none.

    Of several checks on the same data it is the one without a limit, or else the one with the highest.
    """
    files = {path: read_json(path) for path in sorted(_folder(results, judge).glob("*.json"))}
    by_limit = sorted(files.items(), key=lambda item: item[1].get("limit") or math.inf)
    largest = {check["data"]: (path, check) for path, check in by_limit}
    return (
        "; ".join(_told(check, path.relative_to(results)) for _, (path, check) in sorted(largest.items())) or NO_CHECK
    )


def _told(check: Mapping, path: Path) -> str:
    accuracy, low, high = (f"{100 * check[name]:.1f}" for name in ("accuracy", "low", "high"))
    data = f"{check['data']}, the first {check['limit']}" if check.get("limit") else check["data"]
    return f"{data}: {accuracy} % [{low}, {high}] of {check['n']} ({path})"


def _folder(results: Path, judge: str) -> Path:
    return Path(results) / FOLDER / _told_apart(judge)


def _told_apart(name: str) -> str:
    """Return a name for a file that no other name is given, however long it is and whatever it holds."""
    return f"{_slug(name)[:60]}-{hash_value(name)[:8]}"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")
