"""What is said of judgements without a preference: how many there are, why, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness.core.errors import one_line
from harness.core.records import COUNTED, Judgement

KEPT = ("refused", "unparsable")  # whole answers, which an endpoint's judge keeps


def why_missing(judgements: Sequence[Judgement]) -> str:
    """Return the number of judgements without a preference by status, each with its most frequent reason; "" if none.

    An example: "3 unparsable: no verdict in the last line: 'Both.'; 1 failed: InternalServerError".
    """
    missing = [judgement for judgement in judgements if judgement.status not in COUNTED]
    told = []
    for status, count in Counter(judgement.status for judgement in missing).most_common():
        ((reason, _),) = Counter(j.detail for j in missing if j.status == status).most_common(1)
        told.append(f"{count} {status}{f': {one_line(reason)}' if reason else ''}")
    return "; ".join(told)


def how_to_ask(judgements: Sequence[Judgement], options: object) -> str:
    """Return how to ask again for answers that are kept without a verdict, in brackets; "" if that asks for none."""
    kept = any(judgement.status in KEPT for judgement in judgements)
    if not kept or getattr(options, "ask_again", True):
        return ""
    return " (kept answers without a verdict only with ask_again=true)"
