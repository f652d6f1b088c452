"""The needs that every backbone supplies the same way, as they depend only on the data and the training interface."""

from __future__ import annotations

from harness.core.encoder import MAX_PIECES
from harness.training.needs.history import history
from harness.training.needs.kl_pairs import kl_pairs
from harness.training.needs.prompts import density_ratios, prompt_embeddings
from harness.training.needs.scores import scores
from harness.training.supply import KeyInputs, Supplier


def _embedded(inputs: KeyInputs) -> dict:
    return {"encoder": inputs.encoder(), "pieces": MAX_PIECES, "prompts": inputs.prompts}


SUPPLIERS = {
    "reference": Supplier(),
    "scores": Supplier(scores),
    "prompt_embeddings": Supplier(prompt_embeddings, _embedded),
    "density_ratios": Supplier(density_ratios, _embedded),
    "kl_pairs": Supplier(kl_pairs),
    "history": Supplier(history),
    "stopped": Supplier(),
}
