"""Loads transformers models for judges in this process, and runs them over texts of any length."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.core.assets import model_folder, weights_hash
from harness.core.dials import dial
from harness.core.pretrained import check_files, check_ids, load_model, read_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from harness.core.render import Renderer


@dataclass
class LocalOptions:
    """The settings under `judge:` for a model that runs in this process."""

    model: str  # a packaged name, a local folder, or a hub id
    revision: str | None = None  # for hub ids
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_tokens: int = dial(2048, at_least=16)  # per text; an overlong prompt loses its beginning
    batch_size: int = dial(16, at_least=1, numeric=False)
    # "auto" spreads the model over all visible GPUs; "": the first GPU, else the CPU.
    device_map: str = dial("", numeric=False)
    agreement_pairs: int = dial(256, at_least=0)  # labelled pairs for measuring the judge


def check_local(options: LocalOptions) -> None:
    """Raise `UserError` for a missing model."""
    model_folder(options.model, options.revision)


class LocalModel:
    """A model folder with its content hash and the model's configuration; the rest is loaded on first use.

    Raises `UserError` for a folder with another kind of model.
    """

    def __init__(self, options: LocalOptions, auto_class: str):
        self.options = options
        self.folder: Path = model_folder(options.model, options.revision)
        self.hash = weights_hash(self.folder)
        self._auto_class = auto_class
        self._what = f"judge model in {self.folder}"
        self.settings: PretrainedConfig = check_files(auto_class, self.folder, self._what).config

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The folder's tokenizer."""
        return read_tokenizer(self.folder, self._what)

    @cached_property
    def renderer(self) -> Renderer:
        """What renders requests for the model; raises `UserError` where no policy could be trained by its tokenizer."""
        from harness.core.render import Renderer

        return Renderer(self.tokenizer)

    @cached_property
    def control(self) -> re.Pattern:
        """A pattern that matches the tokenizer's control tokens."""
        from harness.core.render import control_ids, control_words

        return control_words(self.tokenizer, control_ids(self.tokenizer))

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model in eval mode, on its device. Raises `UserError` if its weights are damaged."""
        import torch

        spread = {"device_map": self.options.device_map} if self.options.device_map else {}
        model = load_model(self._auto_class, self.folder, self._what, dtype=self.options.dtype, **spread)
        if not spread:
            model.to("cuda" if torch.cuda.is_available() else "cpu")
        return model

    def run(self, encoded: Sequence[Mapping[str, Sequence[int]]], read: Callable) -> list:
        """Return the results of `read(logits, last)` for the encoded texts, in order.

        An encoded text has `input_ids` and the tokenizer's other per-token fields. Texts of similar length share a
        batch, padded on the right and masked by length. `read` is called once per batch with the model's logits and the
        (batch,) positions of the last tokens, and returns one result per text. The padding id does not occur in the
        batch, because some models take the token before the first padding id as the last one.
        """
        import torch

        check_ids([text["input_ids"] for text in encoded], self.tokenizer, self.settings, self._what)
        results: list = [None] * len(encoded)
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]))
        for start in range(0, len(order), self.options.batch_size):
            rows = order[start : start + self.options.batch_size]
            lengths = torch.tensor([len(encoded[i]["input_ids"]) for i in rows])
            fill = {"input_ids": self._padding([encoded[i]["input_ids"] for i in rows])}
            inputs = {}
            for name in encoded[rows[0]]:
                inputs[name] = torch.full((len(rows), int(lengths.max())), fill.get(name, 0))
                for row, i in enumerate(rows):
                    inputs[name][row, : lengths[row]] = torch.tensor(list(encoded[i][name]))
            inputs["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
            with torch.no_grad():
                logits = self.model(**{name: tensor.to(self.model.device) for name, tensor in inputs.items()}).logits
            for i, value in zip(rows, read(logits, (lengths - 1).to(logits.device)), strict=True):
                results[i] = value
        return results

    def _padding(self, batch: Sequence[Sequence[int]]) -> int:
        held = {token for sequence in batch for token in sequence}
        pad = self.tokenizer.pad_token_id
        if pad is None or pad in held:
            size = self.model.get_input_embeddings().num_embeddings
            pad = next(token for token in range(size) if token not in held)
        self.model.config.get_text_config().pad_token_id = pad
        return pad
