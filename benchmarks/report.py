"""Writes the tables of RESULTS.md from the JSON files that the benchmarks left in results/."""

from __future__ import annotations

import json
import re
from pathlib import Path

from measure import spelled

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
# The project's goals; a figure without a goal is shown alone.
AT_LEAST = {
    "ratio_default": 9,
    "ratio_precomputed": 6,
    "ratio_plain": 0.97,
    "ratio_shared_prompt": 1.6,
    "ratio_grid": 10,
}
UNDER = {"rpo_share_of_step": 0.01, "seconds_more_cells": 5}


def section(measured: dict) -> str:
    """Return one run's facts, table and figures as Markdown."""
    environment = measured["environment"]
    commit = (environment["git"] or {}).get("commit", "unknown")[:10]
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in ("torch", "transformers", "trl"))
    lines = [f"- {key}: {value}" for key, value in measured["facts"].items()]
    lines += [f"- run on {measured['date']} at commit {commit}; {versions}", ""]
    columns = list(measured["rows"][0])
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(spelled(row[column]) for column in columns) + " |" for row in measured["rows"]]
    lines += ["", "| figure | measured | goal | reached |", "|---|---|---|---|"]
    return "\n".join([*lines, *(goal(name, value) for name, value in measured["figures"].items())])


def goal(name: str, value: float) -> str:
    """Return the table row of a figure: its value, its goal if it has one, and whether that is reached."""
    wanted, reached = "", ""
    if name in AT_LEAST:
        wanted, reached = f"at least {AT_LEAST[name]}", "yes" if value >= AT_LEAST[name] else "no"
    if name in UNDER:
        wanted, reached = f"under {UNDER[name]}", "yes" if value < UNDER[name] else "no"
    return f"| {name} | {spelled(value)} | {wanted} | {reached} |"


def filled(page: str) -> str:
    """Return the page with every marked place filled from its file."""

    def fill(marker: re.Match[str]) -> str:
        name = marker.group(1)
        path = HERE / "results" / f"{name}.json"
        text = section(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else "Not measured."
        return f"<!-- {name} -->\n{text}\n<!-- /{name} -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", fill, page, flags=re.DOTALL)


if __name__ == "__main__":
    RESULTS.write_text(filled(RESULTS.read_text(encoding="utf-8")), encoding="utf-8")
