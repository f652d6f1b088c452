"""PandaLM's test set: instructions with answers of several models, compared in pairs by three annotators (2306.05087).

The comparisons of an instruction are merged into a list with a score for each response, so that it can train every
kind of loss: listwise, scored, paired and unpaired.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from harness.core.config import TaskConfig
from harness.core.errors import UserError
from harness.tasks.base import TaskData, register_task
from harness.tasks.formats import parse_standard, present, text_in
from harness.tasks.rows import Row
from harness.tasks.sources import read_packaged, read_rows
from harness.tasks.splits import read_task

ACCEPTED = "instruction/input/response1/response2/annotator1/annotator2/annotator3"
ANNOTATORS = ("annotator1", "annotator2", "annotator3")


@register_task("pandalm", keep="start", baseline="the response that annotators liked best", template="alpaca_eval")
def load(config: TaskConfig) -> TaskData:
    """Read the packaged comparisons, or a file or folder in their layout."""
    packaged = config.data == "packaged"
    rows = read_packaged("pandalm", config.subset) if packaged else read_rows(config.data, config.subset)
    return read_task(lists(rows), parse_standard, source=config.data, labels="human")


def lists(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield one row per instruction: its responses with scores (votes for - votes against) / votes, in [-1, 1].

    The annotators' values are 1 or 2 for the better response, 0 for a tie. Not every pair of responses was compared,
    so a score also depends on which responses it was compared with. Raises `UserError` for any other vote.
    """
    prompts: dict[str, Row] = {}
    balance: dict[str, Counter[str]] = {}
    votes: dict[str, Counter[str]] = {}
    for row in rows:
        extra = text_in(row, "input", ACCEPTED).strip()
        prompt = "\n\n".join(filter(None, (text_in(row, "instruction", ACCEPTED).strip(), extra)))
        prompts.setdefault(prompt, row)
        for number in (1, 2):
            text = _response(row, f"response{number}")
            row_votes = [_vote(row, annotator) for annotator in ANNOTATORS]
            balance.setdefault(prompt, Counter())[text] += row_votes.count(number) - row_votes.count(3 - number)
            votes.setdefault(prompt, Counter())[text] += len(row_votes)
    for prompt, row in prompts.items():
        scored = [{"text": text, "score": balance[prompt][text] / count} for text, count in votes[prompt].items()]
        yield Row({"prompt": prompt, "responses": scored}, row.where, row.split)


def _response(row: Row, column: str) -> str:
    value = row.get(column)  # the file has the answer "True" as a boolean
    return str(value) if isinstance(value, bool) else text_in(row, column, ACCEPTED)


def _vote(row: Row, annotator: str) -> int:
    value = present(row, annotator, ACCEPTED)
    if value not in (0, 1, 2) or isinstance(value, bool):
        raise UserError(f"{row.where}: column {annotator!r} must be 0 (a tie), 1 or 2, got {value!r}")
    return value
