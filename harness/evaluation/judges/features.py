"""The features of a response for the preference model: its style, its words and its embedding.

Each block of features turns (prompt, response) pairs into rows of a matrix. The model's input is the difference of two
rows, so blocks need no features of the prompt alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from harness.core.prompt import Prompt

STYLE, WORDS, EMBEDDING = "style", "words", "embedding"
BLOCKS = (STYLE, WORDS, EMBEDDING)
ASKED = 300  # characters of the last user turn that are embedded
# Words and pairs of words.
VOCABULARY = {"ngram_range": (1, 2), "min_df": 3, "max_features": 2000, "sublinear_tf": True}
DENIALS = {"no", "not", "cannot", "can't", "don't", "won't", "shouldn't", "sorry"}


class Features:
    """The selected blocks of features. `state` (JSON) is what `fit` learned: the vocabulary and its IDF weights."""

    def __init__(self, blocks: Sequence[str], embed: Callable, state: dict | None = None):
        self.blocks = tuple(blocks)
        self.state = state or {}
        self._embed = embed

    def fit(self, responses: Sequence[str]) -> Features:
        """Learn the vocabulary from responses if the word block is selected; needs no labels. Returns itself."""
        if WORDS in self.blocks:
            from sklearn.feature_extraction.text import TfidfVectorizer

            try:
                fitted = TfidfVectorizer(**VOCABULARY).fit(responses)
                order = sorted(fitted.vocabulary_, key=fitted.vocabulary_.__getitem__)
                self.state = {"vocabulary": order, "idf": fitted.idf_.tolist()}
            except ValueError:  # no word is frequent enough
                self.state = {"vocabulary": [], "idf": []}
        return self

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the rows of each block, (n, d) float64."""
        make = {STYLE: self._style, WORDS: self._words, EMBEDDING: self._meaning}
        return {block: make[block](prompts, responses) for block in self.blocks}

    def _style(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        return np.array([style(asked(prompt), response) for prompt, response in zip(prompts, responses, strict=True)])

    def _words(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        from sklearn.feature_extraction.text import TfidfVectorizer

        if not self.state["vocabulary"]:
            return np.zeros((len(responses), 0))
        vectorizer = TfidfVectorizer(**{**VOCABULARY, "max_features": None}, vocabulary=self.state["vocabulary"])
        vectorizer.idf_ = np.array(self.state["idf"])
        return vectorizer.transform(responses).toarray()

    def _meaning(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        texts = [embedded(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        return np.asarray(self._embed(texts), dtype=float)


def style(question: str, response: str) -> list[float]:
    """Return eleven numbers that describe the style of a response; the first is log(1 + length in characters)."""
    words = re.findall(r"[a-z']+", response.lower())
    asked_words = set(re.findall(r"[a-z']+", question.lower()))
    n = max(1, len(words))
    ends = response.count(".") + response.count("?") + response.count("!")
    return [
        math.log1p(len(response)),
        len(set(words)) / n,  # lexical variety
        sum(word in asked_words for word in words) / n,  # overlap with the question
        response.count("?") / (1 + ends),
        float(response.rstrip().endswith("?")),  # ends with a question
        float(response.rstrip()[-1:] in (*".!?)'\"",)),  # ends with closing punctuation
        math.log1p(response.count("\n")),
        sum(word in ("i", "i'm", "i'd", "i'll", "my") for word in words) / n,
        sum(word in ("you", "your", "you're") for word in words) / n,
        sum(word in DENIALS for word in words) / n,
        math.log1p(sum(character.isdigit() for character in response)),
    ]


def asked(prompt: Prompt) -> str:
    """Return the last user turn."""
    return next((message.content for message in reversed(prompt) if message.role == "user"), "")


def embedded(prompt: Prompt, response: str) -> str:
    """Return the text to embed: the end of the last user turn, and the response.

    The response comes last, because the encoder keeps the end of an overlong text. A long turn is cut, because it is on
    both sides of the difference: embedding TL;DR's whole posts took three times as long without better accuracy.
    """
    return f"{asked(prompt)[-ASKED:]}\n\n{response}"
