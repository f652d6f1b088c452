"""Controlled sentiment: continue the first words of a film review; the true reward is known (2305.18290, section 6.1).

The data have no preferences: completions are sampled from the SFT policy and labelled by the reward.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.config import GenerateConfig, TaskConfig
from harness.core.errors import UserError
from harness.core.prompt import Message
from harness.tasks.base import Preference, Question, TaskData, register_task
from harness.tasks.reviews import Review, load_reviews
from harness.tasks.rewards import sentiment  # noqa: F401  (registers the reward)


@register_task("sentiment", keep="end", baseline="the SFT policy's sample", template="hh", generates=True)
def load(config: TaskConfig) -> TaskData:
    """Return prompts with the review's own continuation as demonstration; no review or prompt is in two splits.

    `harness.tasks.reviews` documents the reviews and which of them the reward and the language model use. Reviews
    without a word after the prompt, and repeated prompts, are dropped and counted. Raises `UserError` if a split is
    left empty.
    """
    words = (config.generate or GenerateConfig()).prompt_words
    reviews = load_reviews(config.data, config.subset)
    seen: set[str] = set()
    counts: dict[str, int] = {}
    parts = {}
    for split in ("test", "dev", "train"):  # a prompt in several splits stays in the first of these
        parts[split] = _openings(reviews[split], words, seen)
        counts[f"{split}: reviews"] = len(reviews[split])
        counts[f"{split}: dropped, short or begins like another"] = len(reviews[split]) - len(parts[split])
        if not parts[split]:
            raise UserError(f"{config.data}: too few reviews: none is left for {split}; give more")
    demonstrations = {
        split: [Preference((Message("user", begins),), goes_on, None) for _, begins, goes_on in parts[split]]
        for split in ("train", "dev")
    }
    questions = {
        split: [Question(review.id[-16:], (Message("user", begins),), "") for review, begins, _ in parts[split]]
        for split in ("dev", "test")
    }
    return TaskData(
        **demonstrations,
        test=questions["test"],
        dev_questions=questions["dev"],
        judge_fit=[],
        judge_test=[],
        labels="gold reward",
        counts=counts,
    )


def _openings(reviews: Sequence[Review], words: int, seen: set[str]) -> list[tuple[Review, str, str]]:
    """Return (review, prompt, continuation) for each prompt that is not in `seen`, and add the prompts to `seen`."""
    openings = []
    for review in reviews:
        parts = review.text.split()
        begins = " ".join(parts[:words])
        if len(parts) > words and begins.lower() not in seen:
            seen.add(begins.lower())
            openings.append((review, begins, " ".join(parts[words:])))
    return openings
