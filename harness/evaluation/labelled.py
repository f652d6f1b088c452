"""Labelled comparisons for checking judges: packaged benchmarks, the tasks' held-out pairs, and the user's files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from harness.core.config import TaskConfig
from harness.core.errors import UserError
from harness.evaluation.agreement import chosen_first, comparisons_of_pairs
from harness.evaluation.base import Comparison
from harness.tasks import TASKS, Preference
from harness.tasks.formats import Dropped, parse_standard, prompt_in, text_in
from harness.tasks.rows import Row
from harness.tasks.sources import read_packaged, read_rows

TIE, FIRST, SECOND = 0, 1, 2  # the values of a label
FILE_COLUMNS = "prompt/response_1/response_2/label (1, 2, or 0 for a tie; and subset), or prompt/chosen/rejected"


@dataclass(frozen=True)
class Labelled:
    """A comparison with its label: `FIRST` if the response is better, `SECOND` if the baseline is, or `TIE`."""

    comparison: Comparison
    label: int
    subset: str


@dataclass(frozen=True)
class LabelledSet:
    """Labelled comparisons, the source of their labels, and the number of dropped rows by reason."""

    rows: list[Labelled]
    labels: str
    dropped: dict[str, int]


def load_labelled(data: str, limit: int | None = None) -> LabelledSet:
    """Read llmbar, pandalm, hh or tldr, or a file in a standard preference format or with the columns of LLMBar.

    `limit` keeps only the first rows. Raises `UserError` for a missing, empty or malformed file.
    """
    labels, rows = BENCHMARKS[data]() if data in BENCHMARKS else ("the file's labels", _file(data))
    kept, dropped = [], Counter()
    for row in rows:
        if isinstance(row, str):
            dropped[row] += 1
        else:
            kept.append(row)
    if not kept:
        raise UserError(f"{data}: no labelled comparison is left ({dict(dropped)})")
    return LabelledSet(kept[:limit], labels, dict(dropped))


def _llmbar() -> tuple[str, Iterator[Labelled | str]]:
    """LLMBar (2310.07641): objectively, one response follows the instruction and the other does not."""
    return "objective labels by LLMBar's authors", _pairs(read_packaged("llmbar"), "input", "output_1", "output_2")


def _pandalm() -> tuple[str, Iterator[Labelled | str]]:
    """PandaLM (2306.05087): the label that at least two of three annotators gave."""
    return "human: the majority of three annotators", _majorities(read_packaged("pandalm"))


def _held_out(task: str) -> Callable[[], tuple[str, Iterator[Labelled | str]]]:
    def load() -> tuple[str, Iterator[Labelled | str]]:
        data = TASKS.get(task).load(TaskConfig())
        return data.labels, _from_pairs(data.judge_test)

    return load


BENCHMARKS = {"llmbar": _llmbar, "pandalm": _pandalm, "hh": _held_out("hh"), "tldr": _held_out("tldr")}


def _pairs(rows: Iterable[Row], prompt: str, first: str, second: str) -> Iterator[Labelled | str]:
    for number, row in enumerate(rows):
        label = row.get("label")
        if label not in (TIE, FIRST, SECOND) or isinstance(label, bool):
            raise UserError(f"{row.where}: column 'label' must be 1, 2, or 0 for a tie, got {label!r}")
        try:
            texts = (text_in(row, first, FILE_COLUMNS), text_in(row, second, FILE_COLUMNS))
            comparison = Comparison(str(number), prompt_in(row, prompt), *texts)
        except Dropped as reason:
            yield str(reason)
            continue
        yield Labelled(comparison, label, str(row.get("subset") or "all"))


def _majorities(rows: Iterable[Row]) -> Iterator[Labelled | str]:
    for number, row in enumerate(rows):
        instruction = "\n\n".join(filter(None, (str(row.get(name) or "").strip() for name in ("instruction", "input"))))
        votes = Counter(row.get(f"annotator{i}") for i in (1, 2, 3))
        (label, count), *_ = votes.most_common()
        if count < 2:
            yield "the three annotators all differ"
            continue
        values = {"prompt": instruction, "label": label}
        values |= {f"response_{i}": str(row.get(f"response{i}")) for i in (1, 2)}
        for pair in _pairs([Row(values, row.where)], "prompt", "response_1", "response_2"):
            yield pair if isinstance(pair, str) else Labelled(_numbered(pair.comparison, number), label, "all")


def _numbered(comparison: Comparison, number: int) -> Comparison:
    return Comparison(str(number), comparison.prompt, comparison.response, comparison.baseline)


def _from_pairs(pairs: Iterable[Preference]) -> Iterator[Labelled]:
    """Yield pairs as labelled comparisons, every other one swapped: a judge that prefers one side is half right."""
    for number, comparison in enumerate(comparisons_of_pairs([pair for pair in pairs if pair.paired])):
        yield Labelled(comparison, FIRST if chosen_first(number) else SECOND, "all")


def _file(data: str) -> Iterator[Labelled | str]:
    rows = list(read_rows(data))
    first = rows[0].values
    if {"response_1", "response_2"} <= set(first):
        return _pairs(rows, "prompt", "response_1", "response_2")
    if {"output_1", "output_2"} <= set(first):
        return _pairs(rows, "instruction" if "instruction" in first else "input", "output_1", "output_2")
    if "chosen" not in first and not ({"chosen", "rejected"} & set(first)):
        raise UserError(f"{rows[0].where}: no labelled comparison; accepted: {FILE_COLUMNS}")
    return _standard(rows)


def _standard(rows: list[Row]) -> Iterator[Labelled | str]:
    preferences = []
    for row in rows:
        try:
            preferences.append(parse_standard(row).preference)
        except Dropped as reason:
            yield str(reason)
    yield from _from_pairs([pair for pair in preferences if pair])
