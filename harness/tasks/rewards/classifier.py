"""A text classifier as a reward: the probability that the prompt with the response is positive."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.assets import model_folder, weights_hash
from harness.core.errors import UserError
from harness.core.pretrained import check_files, load_model, read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ClassifierReward:
    """The probability of a classifier's positive label, e.g. siebert/sentiment-roberta-large-english.

    The positive label is the one whose name starts with "pos", ignoring case. An overlong text loses its end. Raises
    `UserError` for a model that is unavailable or has no such label.
    """

    def __init__(self, name: str):
        self.folder: Path = model_folder(name)
        self.hash = weights_hash(self.folder)
        self._name = name
        what = f"classifier in {self.folder}"
        labels = check_files("AutoModelForSequenceClassification", self.folder, what).config.id2label
        self._positive = next((i for i, label in labels.items() if str(label).lower().startswith("pos")), None)
        if self._positive is None:
            raise UserError(
                f"reward {name!r}: of the classifier's labels ({', '.join(map(str, labels.values()))}) none is "
                "positive; name a function that reads it instead (module:function)"
            )

    def __call__(self, prompt: str, response: str) -> float:
        """Return the probability that the text is positive."""
        import torch

        tokenizer, model = self._model
        ids = tokenizer(f"{prompt} {response}", truncation=True, return_tensors="pt").to(model.device)
        with torch.no_grad():
            return float(model(**ids).logits.float().softmax(dim=-1)[0, self._positive])

    @cached_property
    def _model(self) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
        import torch

        what = f"classifier in {self.folder}"
        tokenizer = read_tokenizer(self.folder, what)
        model = load_model("AutoModelForSequenceClassification", self.folder, what)
        tokenizer.model_max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings - 2)
        return tokenizer, model.to("cuda" if torch.cuda.is_available() else "cpu")
