"""The sentiment task: first words as prompts, in disjoint splits, and the classifier used as its reward."""

import itertools

import numpy as np
import pytest

from harness.core.config import GenerateConfig, TaskConfig
from harness.core.errors import UserError
from harness.core.store import read_json
from harness.tasks import TASKS
from harness.tasks.reviews import Review, load_reviews
from harness.tasks.rewards import sentiment as sentiment_reward
from harness.tasks.rewards.base import find_reward
from tests.tasks.reviews_file import BLAME, PRAISE, write_reviews


@pytest.fixture(scope="module")
def reviews(tmp_path_factory) -> str:
    return str(write_reviews(tmp_path_factory.mktemp("reviews") / "reviews.jsonl"))


def texts_of(data) -> dict[str, list[tuple[str, str]]]:
    """Return (prompt, continuation) of each row."""
    told = {s: [(p.prompt[0].content, p.chosen) for p in getattr(data, s)] for s in ("train", "dev")}
    return {**told, "test": [(q.prompt[0].content, "") for q in data.test]}


def test_a_prompt_is_the_first_words_and_the_rest_is_the_demonstration(reviews):
    data = TASKS.get("sentiment").load(TaskConfig(data=reviews, generate=GenerateConfig(prompt_words=3)))
    whole = {review.text for part in load_reviews(reviews).values() for review in part}
    for prompt, rest in texts_of(data)["train"] + texts_of(data)["dev"]:
        assert len(prompt.split()) == 3 and f"{prompt} {rest}" in whole
    assert all(p.rejected is None for p in data.train + data.dev)


def test_no_review_and_no_prompt_is_in_two_splits_nor_with_the_reward_or_the_language_model(reviews):
    data = texts_of(TASKS.get("sentiment").load(TaskConfig(data=reviews)))
    parts = load_reviews(reviews)
    prompts = {split: {prompt for prompt, _ in rows} for split, rows in data.items()}
    for one, other in itertools.combinations(prompts.values(), 2):
        assert not one & other
    for use in ("policy", "reward", "reward_test"):
        openings = {" ".join(review.text.split()[:8]) for review in parts[use]}
        assert openings and not any(openings & texts for texts in prompts.values())


@pytest.mark.slow
def test_on_the_packaged_reviews_too_no_prompt_is_in_two_splits():
    data = TASKS.get("sentiment").load(TaskConfig())
    prompts = [prompt.lower() for rows in texts_of(data).values() for prompt, _ in rows]
    assert len(set(prompts)) == len(prompts) > 3500
    dropped = [count for what, count in data.counts.items() if "dropped" in what]
    assert len(prompts) + sum(dropped) == sum(len(load_reviews()[split]) for split in ("train", "dev", "test"))


def test_too_few_reviews_are_the_user_s_to_mend(tmp_path):
    path = write_reviews(tmp_path / "few.jsonl", 3)
    with pytest.raises(UserError, match=r"few\.jsonl: too few reviews: none is left for test"):
        TASKS.get("sentiment").load(TaskConfig(data=str(path)))


# ---------------------------------------------------------------------- the reward


@pytest.fixture(scope="module")
def fitted(reviews):
    parts = load_reviews(reviews)
    return sentiment_reward.fit(parts["reward"]), parts


def test_the_classifier_scores_as_scikit_learn_does(fitted):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    model, parts = fitted
    vectorizer = TfidfVectorizer(analyzer=sentiment_reward.features_of, min_df=3, sublinear_tf=True)
    matrix = vectorizer.fit_transform([review.text for review in parts["reward"]])
    theirs = LogisticRegression(C=10.0, max_iter=1000).fit(matrix, [r.positive for r in parts["reward"]])
    texts = [review.text for review in parts["test"]] + ["the film", "", "zzz"]
    expected = theirs.predict_proba(vectorizer.transform(texts))[:, 1]
    np.testing.assert_allclose([model(text) for text in texts], expected, atol=1e-12)


def test_it_tells_praise_from_blame_and_comes_out_the_same_twice(fitted):
    model, parts = fitted
    assert sentiment_reward.accuracy(model, parts["reward_test"]) == 1.0
    assert all(model(f"the film was {word}") > 0.5 for word in PRAISE)
    assert all(model(f"the film was {word}") < 0.5 for word in BLAME)
    again = sentiment_reward.fit(parts["reward"])
    np.testing.assert_array_equal(again.weights, model.weights)


def test_accuracy_counts_the_first_words_alone_where_asked(fitted):
    model, _ = fitted
    review = Review("0", "wonderful superb brilliant but then awful terrible dull a mess a bore", True)
    assert sentiment_reward.accuracy(model, [review], 3) == 1.0 and sentiment_reward.accuracy(model, [review]) == 0.0


def test_words_are_lower_cased_and_keep_their_apostrophes():
    assert sentiment_reward.features_of("I DIDN'T like it.") == [
        "i", "didn't", "like", "it", "i didn't", "didn't like", "like it",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_packaged_reward_is_fitted_once_and_says_how_often_it_is_right(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    sentiment_reward._fitted.cache_clear()
    reward = find_reward("imdb_sentiment")
    assert reward("This film was", "a wonderful, moving masterpiece") > 0.8
    assert reward("This film was", "a terrible waste of time") < 0.1
    measured = read_json(sentiment_reward.fitted_folder() / "accuracy.json")
    assert measured["n"] > 1000 and measured["whole"] > 0.87 and measured["short"] > 0.72
    (folder,) = tmp_path.glob("sentiment-*")
    assert reward.version() in folder.name
    sentiment_reward._fitted.cache_clear()
