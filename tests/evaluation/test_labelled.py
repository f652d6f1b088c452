"""Labelled comparisons for checking judges."""

import gzip
import json
from pathlib import Path

import harness
from harness.evaluation.labelled import FIRST, SECOND, load_labelled

DATA = Path(harness.__file__).parent / "tasks" / "data"


def packaged(name: str) -> list[dict]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_pandalm_s_label_is_that_of_the_majority():
    """The median of the three votes, since no row has three different votes."""
    votes = [sorted(row[f"annotator{i}"] for i in (1, 2, 3)) for row in packaged("pandalm")]
    data = load_labelled("pandalm")
    assert [row.label for row in data.rows] == [vote[1] for vote in votes]
    assert (len(data.rows), data.dropped) == (999, {})


def test_held_out_pairs_stand_in_both_places():
    data = load_labelled("tldr", limit=40)
    assert data.labels == "gpt-4 preferences"
    assert [row.label for row in data.rows] == [FIRST, SECOND] * 20
