"""Reviews written by the tests: many short ones, positive or negative, all different."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

PRAISE = ["wonderful", "superb", "a joy", "great fun", "moving", "brilliant"]
BLAME = ["terrible", "awful", "a bore", "a waste of time", "dull", "a mess"]
SUBJECTS = ["film", "story", "cast", "ending", "music", "script", "pace", "hero"]


def write_reviews(path: Path, count: int = 400) -> Path:
    """Write `count` reviews, half of them positive, as JSON lines with text and label."""
    rng = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for number, label in zip(range(count), itertools.cycle([0, 1]), strict=False):
            words = [f"Number {number}:"]
            for subject in rng.sample(SUBJECTS, 5):
                words.append(f"the {subject} was {rng.choice(PRAISE if label else BLAME)} and")
            file.write(json.dumps({"text": " ".join(words) + "<br /><br />that is all.", "label": label}) + "\n")
    return path
