"""Sentence embeddings of prompts (for the weights of RPO) and of responses (for the preference model)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.core.assets import model_folder, weights_hash
from harness.core.errors import UserError
from harness.core.hashing import hash_value
from harness.core.pretrained import check_files, check_ids, load_model, read_tokenizer
from harness.core.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_PIECES = 256  # the length all-MiniLM-L6-v2 was trained on
BATCH_SIZE = 32


class Encoder:
    """A sentence encoder: mean pooling over a transformer's last layer, normalised to unit length, fp32.

    A text longer than 256 word pieces keeps its END, because the last turn of a dialogue, or the response after its
    prompt, matters most. (sentence-transformers keeps the start, and so loses the question of a long dialogue.)
    """

    def __init__(self, name: str, store: Store):
        self.folder: Path = model_folder(name)
        self.hash = weights_hash(self.folder)
        check_files("AutoModel", self.folder, self._what)
        self.store = store
        self._seen: dict[str, np.ndarray] = {}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return `(len(texts), d)` float32 unit vectors. Texts embedded before are not computed again."""
        new = [text for text in dict.fromkeys(texts) if text not in self._seen]
        self._seen.update(zip(new, self._compute(new), strict=True))
        return np.stack([self._seen[text] for text in texts])

    def stored(self, texts: Sequence[str]) -> np.ndarray:
        """Return what `embed` returns, cached in the store for later runs with the same list of texts."""
        inputs = {"encoder": self.hash, "pieces": MAX_PIECES, "texts": hash_value(list(texts))}
        artifact = self.store.artifact(
            "embeddings", inputs, lambda folder: np.save(folder / "embeddings.npy", self.embed(texts))
        )
        return np.load(artifact.path / "embeddings.npy", allow_pickle=False)

    @cached_property
    def _model(self) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
        tokenizer = read_tokenizer(self.folder, self._what, truncation_side="left")
        if tokenizer.pad_token_id is None:
            raise UserError(f"{self._what} has no padding token; choose a sentence encoder")
        return tokenizer, load_model("AutoModel", self.folder, self._what)

    @property
    def _what(self) -> str:
        return f"encoder in {self.folder}"

    def _compute(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        tokenizer, model = self._model
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model.to(device)  # type: ignore[arg-type]  # transformers wraps `to` without its type
        ids = tokenizer(list(texts), truncation=True, max_length=MAX_PIECES)["input_ids"] if texts else []
        check_ids(ids, tokenizer, model.config, self._what)
        result = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(ids[i]))  # batches of similar lengths are 3 times faster
        for start in range(0, len(order), BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            batch = tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt").to(device)
            with torch.no_grad():
                hidden = model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            result[rows] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
        return result
