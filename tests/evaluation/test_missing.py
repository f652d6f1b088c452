"""What is said of judgements without a preference."""

from harness.core.records import Judgement
from harness.evaluation.judges.gold import GoldOptions
from harness.evaluation.judges.openai import OpenAIOptions
from harness.evaluation.missing import how_to_ask, why_missing

JUDGED = [Judgement("0", "ok", 1.0), Judgement("1", "tie", 0.5)]
FAILED = [Judgement(str(i), "failed", None, detail="status 500") for i in range(3)]
UNPARSABLE = [Judgement(str(i), "unparsable", None, detail=f"answer {max(i, 1)}\x1b") for i in range(4)]


def test_each_status_has_its_number_and_its_most_frequent_reason():
    assert why_missing(JUDGED) == why_missing([]) == ""
    assert why_missing([*FAILED, *JUDGED, *UNPARSABLE]) == "4 unparsable: answer 1; 3 failed: status 500"
    assert why_missing([Judgement("0", "failed", None)]) == "1 failed"


def test_what_no_run_asks_again_by_itself_is_said():
    """Answers that were paid for are kept; a judge that is no endpoint's has none."""
    openai, again = OpenAIOptions("m"), OpenAIOptions("m", ask_again=True)
    assert how_to_ask([*JUDGED, *UNPARSABLE], openai) == " (kept answers without a verdict only with ask_again=true)"
    assert how_to_ask([*JUDGED, *FAILED], openai) == how_to_ask(UNPARSABLE, again) == ""
    assert how_to_ask(UNPARSABLE, GoldOptions("imdb_sentiment")) == ""
