"""Anthropic's HH: pairs of dialogues with an assistant, where humans chose the better last turn (2204.05862)."""

from __future__ import annotations

from itertools import chain

from harness.core.config import TaskConfig
from harness.tasks.base import TaskData, register_task
from harness.tasks.formats import parse_standard
from harness.tasks.sources import read_packaged, read_rows
from harness.tasks.splits import read_task


@register_task("hh", keep="end", baseline="the chosen response", template="hh")
def load(config: TaskConfig) -> TaskData:
    """Read the packaged pairs, or a file, folder or hub data set in Anthropic's layout or a standard format.

    The hub id is Anthropic/hh-rlhf; its subsets are folders such as harmless-base and helpful-base, and all four are
    read by default. Rows whose dialogues differ before the last turn, or lack a turn, are dropped and counted.
    """
    packaged = config.data == "packaged"
    rows = read_packaged("hh", config.subset) if packaged else read_rows(config.data, config.subset)
    first = next(rows)
    # Labels in Anthropic's layout are human; for other files, which have a `prompt`, their origin is unknown.
    labels = "the data set's labels" if first.get("prompt") is not None else "human"
    return read_task(chain([first], rows), parse_standard, source=config.data, labels=labels)
