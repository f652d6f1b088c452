"""Checks of judges against human labels (`python -m harness judge-check`): where they are stored, and their summary.

A check belongs to a judge's id, so it is shown with every result of the same judge with the same template. A check of
the first comparisons only (`--limit`) has a file of its own: it never replaces the check of all of them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import UserError, one_line
from harness.core.from_json import from_json
from harness.core.hashing import hash_value
from harness.core.record_files import readable
from harness.core.store import read_json

FOLDER = "judge-checks"
NO_CHECK = "none was run"


@dataclass(frozen=True)
class Check:
    """What is shown of a check: accuracy with its interval, in [0, 1], or None if nothing was judged.

    `n` is how many comparisons were judged; `limit` is None if all were asked.
    """

    data: str
    n: int
    accuracy: float | None
    low: float | None
    high: float | None
    limit: int | None = None


def check_file(results: Path, judge: str, data: str, limit: int | None = None) -> Path:
    """Return the path of a judge's check on these data; `results` is the folder of all experiments.

    `limit`: the number of comparisons, if not all were checked.
    """
    name = data if data == _slug(data)[:60] else _told_apart(data)
    return _folder(results, judge) / f"{name}{'' if limit is None else f'-first-{limit}'}.json"


def checks_of(results: Path, judge: str) -> str:
    """Return a summary of a judge's checks, each with its file below `results`; `NO_CHECK` if there is none.

    Of several checks on the same data it is the one without a limit, or else the one with the highest. A file that
    cannot be read is named: it makes no other number of a report worse.
    """
    checks, told = {}, {}
    for path in sorted(_folder(results, judge).glob("*.json")):
        try:
            check = read_check(path)
        except UserError:
            told[path.name] = f"{path.relative_to(results)} cannot be read: run judge-check again"
            continue
        if check.data not in checks or _size(check) > _size(checks[check.data][0]):
            checks[check.data] = check, path
    told |= {data: _told(check, path.relative_to(results)) for data, (check, path) in checks.items()}
    return "; ".join(text for _, text in sorted(told.items())) or NO_CHECK


def read_check(path: Path) -> Check:
    """Read a stored check; raises `UserError` if it is damaged."""
    return readable(path, lambda file: from_json(Check, read_json(file)))


def _size(check: Check) -> float:
    return check.limit or math.inf


def _told(check: Check, path: Path) -> str:
    data = f"{check.data}, the first {check.limit}" if check.limit else check.data
    if check.accuracy is None or check.low is None or check.high is None:
        return f"{data}: not measured ({check.n} judged) ({path})"
    accuracy, low, high = (f"{100 * value:.1f}" for value in (check.accuracy, check.low, check.high))
    return one_line(f"{data}: {accuracy} % [{low}, {high}] of {check.n} ({path})")


def _folder(results: Path, judge: str) -> Path:
    return Path(results) / FOLDER / _told_apart(judge)


def _told_apart(name: str) -> str:
    """Return a name for a file that no other name is given, however long it is and whatever it holds."""
    return f"{_slug(name)[:60]}-{hash_value(name)[:8]}"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")
