"""Measures of a judge from its judgements of labelled comparisons, against values computed by hand."""

import pytest

from harness.core.records import Judgement, Usage
from harness.evaluation.base import Comparison
from harness.evaluation.judge_check import check_measures
from harness.evaluation.labelled import FIRST, SECOND, TIE, Labelled


def row(label: int, first: str = "long one", second: str = "short", subset: str = "all") -> Labelled:
    return Labelled(Comparison("0", (), first, second), label, subset)


def judged(preference: float | None, flipped=None, first=None, usd=None) -> Judgement:
    status = "failed" if preference is None else "tie" if preference == 0.5 else "ok"
    usage = Usage(1, 1, usd) if usd is not None else None
    return Judgement("0", status, preference, flipped, first=first, usage=usage)


def test_the_measures_by_hand():
    """Of five comparisons, one has no judgement and one is labelled a tie. The judge is right, wrong and undecided."""
    rows = [row(FIRST), row(SECOND, subset="b"), row(FIRST, subset="b"), row(TIE), row(FIRST)]
    judgements = [
        judged(0.9, False, 0.5, 0.01),
        judged(0.8, False, 0.5, 0.01),
        judged(0.5, True, 1.0, 0.02),
        judged(0.5, True, 0.0, 0.04),
        judged(None),
    ]
    measures = check_measures(rows, judgements)
    assert (measures["accuracy"], measures["n"]) == (1.5 / 3, 3)
    assert measures["subsets"]["b"]["accuracy"] == 0.25
    assert measures["coverage"] == 0.8 and measures["missing"] == {"failed": 1}
    # labels 1 2 1 0, verdicts 1 1 0 0: observed 2/4, expected (2 x 2 + 1 x 0 + 1 x 2) / 16
    assert measures["kappa"] == pytest.approx((0.5 - 6 / 16) / (1 - 6 / 16))
    assert (measures["flip_rate"], measures["first_rate"]) == (0.5, 0.5)
    assert (measures["longer"], measures["labels_longer"]) == (1.0, 2 / 3)
    assert measures["usd_per_1000"] == pytest.approx(1000 * 0.08 / 4)
