"""The stage that makes a model from scratch, kept by content like every other, and its export as a folder to ship."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator, PartialState

from harness.backbones.language_model.from_scratch import MODEL, RECORD, pretrain
from harness.core.config import FromScratchConfig
from harness.core.errors import UserError
from harness.core.hashing import hash_value
from harness.core.store import Artifact, Store, build_artifact, find_artifact, partial_folder, read_json, write_text
from harness.tasks.reviews import ORIGIN, SHARES, load_reviews
from harness.training.checkpoint import Checkpoints


def pretrained(
    config: FromScratchConfig, store: Store, progress: Callable[[int, int], None] = lambda done, total: None
) -> Artifact:
    """Return the artifact of a model from scratch, training it on first use: the model is in its folder `model`.

    It learns from the reviews that the sentiment task leaves to policies, and its loss is measured on those of the
    task's dev prompts. Raises `UserError` for data that cannot be read, and where several processes would have to
    train it.
    """
    reviews = load_reviews(config.data, config.subset)
    texts = [review.text for review in reviews["policy"][: config.texts]]
    held_out = [review.text for review in reviews["dev"]]
    if not texts or not held_out:
        raise UserError(f"model.from_scratch: {config.data} has too few reviews; give more")
    inputs = {
        "format": 1,
        "texts": hash_value(texts),
        "held_out": hash_value(held_out),
        "model": {k: v for k, v in asdict(config).items() if k not in ("data", "subset", "texts", "pretrain")},
        "pretrain": config.pretrain.numeric(),
    }
    path = store.path("pretrain", inputs)
    if PartialState().num_processes > 1 and not find_artifact(path, inputs):
        raise UserError(
            "a model from scratch is trained by one process: run python -m harness pretrain EXPERIMENT.yaml first"
        )

    def build(folder: Path) -> None:
        checkpoints = Checkpoints(partial_folder(path), inputs, config.pretrain.checkpoint_every)
        pretrain(config, texts, held_out, Accelerator(), folder, progress, checkpoints)

    return build_artifact(path, "pretrain", inputs, build)


def export(artifact: Artifact, folder: Path, command: str) -> None:
    """Copy a model from scratch to `folder`, with a README that says by which command, on what data, and how good it is."""
    shutil.copytree(artifact.path / MODEL, folder, dirs_exist_ok=True)
    record, inputs = read_json(artifact.path / RECORD), artifact.manifest["inputs"]
    held_out = record["held_out"]
    model = ", ".join(f"{name} {value}" for name, value in inputs["model"].items())
    training = ", ".join(f"{name} {value}" for name, value in inputs["pretrain"].items())
    write_text(
        folder / "README.md",
        f"""# A small language model of film reviews

A Llama of {record["parameters"]:,} parameters with a byte-level BPE tokenizer, both made from nothing by

    {command}

- Data: {record["texts"]:,} reviews, {record["tokens"]:,} tokens, {SHARES["policy"]:.0%} of all reviews: those that neither the gold reward nor
  a prompt uses. {ORIGIN}
  sha256 of the list of texts: `{inputs["texts"]}`.
- Model: {model}; weights in bf16.
- Training: {training}. {record["steps"]:,} steps took {record["seconds"] / 60:.0f} minutes.
- Held out: cross-entropy {held_out["loss"]:.3f} nats per token, perplexity {held_out["perplexity"]:.1f}, measured on the
  {held_out["tokens"]:,} tokens of {held_out["texts"]:,} reviews that it has not seen.

It continues reviews, knows nothing else, and is good for the controlled experiment alone.
""",
    )
