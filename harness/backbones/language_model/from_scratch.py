"""A language model trained from scratch: a tokenizer and a small Llama, cached in the store, and its export."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from harness.backbones.language_model.policy import TENSORS, LanguageModel, load_policy, load_tokenizer
from harness.backbones.language_model.scoring import BatchSource
from harness.backbones.language_model.sft import train_sft
from harness.backbones.language_model.tokens import Tokens
from harness.core.assets import quiet
from harness.core.config import FromScratchConfig, ModelConfig
from harness.core.dials import numeric
from harness.core.errors import UserError
from harness.core.hashing import hash_value
from harness.core.store import (
    Artifact,
    Store,
    build_artifact,
    find_artifact,
    partial_folder,
    read_json,
    write_json,
    write_text,
)
from harness.tasks.reviews import ORIGIN, SHARES, load_reviews
from harness.training.base import Job
from harness.training.checkpoint import Checkpoints
from harness.training.randomness import seeded

MODEL, RECORD = "model", "pretrain.json"
END = "<|endoftext|>"
# A prompt is the beginning of a text and a completion continues it, so there are no roles or tags.
CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


def pretrain(config: FromScratchConfig, texts: Sequence[str], held_out: Sequence[str], job: Job) -> None:
    """Train tokenizer and model on `texts`; write the folder `model` and `pretrain.json`, with the loss on `held_out`.

    The weights are stored in bf16, and the held-out loss is that of the stored weights.
    """
    folder, tokenizer = job.folder, train_tokenizer(texts, config.vocabulary)
    with quiet():
        tokenizer.save_pretrained(folder / MODEL)
    tokenizer = load_tokenizer(folder / MODEL, ModelConfig())
    windows = cut_into_windows(tokenizer, texts, config.context)
    with seeded(config.pretrain.seed):
        model = LlamaForCausalLM(_architecture(config, tokenizer))
    policy = LanguageModel(model, ModelConfig()).to(job.accelerator.device)
    source = BatchSource(windows, tokenizer.eos_token_id, config.pretrain.micro_batch_tokens)
    train_sft(policy, range(len(windows)), source, config.pretrain, job)
    (folder / TENSORS).unlink()
    with quiet():
        policy.model.to(torch.bfloat16).save_pretrained(folder / MODEL)
    unseen = cut_into_windows(tokenizer, held_out, config.context)
    stored = load_policy(folder / MODEL, ModelConfig()).to(job.accelerator.device)
    (scored,) = BatchSource(unseen, tokenizer.eos_token_id, config.pretrain.micro_batch_tokens).score([stored])
    loss = -float(scored.values.mean(dtype="float64"))
    write_json(
        folder / RECORD,
        {
            "parameters": sum(p.numel() for p in stored.model.parameters()),
            "texts": len(texts),
            "tokens": sum(len(w.completion) for w in windows),
            **{key: value for key, value in read_json(folder / "summary.json").items() if key in ("steps", "seconds")},
            "held_out": {
                "texts": len(held_out),
                "tokens": len(scored.values),
                "loss": round(loss, 4),
                "perplexity": round(math.exp(loss), 2),
            },
        },
    )


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with one control token that begins, separates and ends texts.

    A space is added before every text, so that a completion that begins with a word has the same tokens on its own as
    after its prompt.
    """
    bpe = ByteLevelBPETokenizer(add_prefix_space=True)
    bpe.train_from_iterator(texts, vocab_size=vocabulary, special_tokens=[END], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=END, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def cut_into_windows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], context: int) -> list[Tokens]:
    """Return the concatenated texts in windows of at most `context` tokens; each token is predicted once."""
    stream: list[int] = []
    for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
        stream += [tokenizer.eos_token_id, *ids]
    stream.append(tokenizer.eos_token_id)
    return [
        Tokens(tuple(stream[start : start + 1]), tuple(stream[start + 1 : start + context]))
        for start in range(0, len(stream) - 1, context - 1)
    ]


def _architecture(config: FromScratchConfig, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )


@dataclass(frozen=True)
class Corpus:
    """The texts that a model from scratch is trained on, and the held-out texts for its loss."""

    texts: list[str]
    held_out: list[str]


def read_corpus(config: FromScratchConfig) -> Corpus:
    """Return the sentiment task's reviews for policies, and, held out, those of its dev prompts.

    Raises `UserError` if the data cannot be read or hold too few reviews.
    """
    reviews = load_reviews(config.data, config.subset)
    corpus = Corpus(
        [review.text for review in reviews["policy"][: config.texts]], [review.text for review in reviews["dev"]]
    )
    if not corpus.texts or not corpus.held_out:
        raise UserError(f"model.from_scratch: {config.data} has too few reviews; give more")
    return corpus


def pretrain_inputs(config: FromScratchConfig, corpus: Corpus) -> dict:
    """Return everything that determines a model from scratch: the key of its artifact."""
    return {
        "format": 1,
        "texts": hash_value(corpus.texts),
        "held_out": hash_value(corpus.held_out),
        "model": numeric(config),
        "pretrain": numeric(config.pretrain),
    }


def find_pretrained(config: FromScratchConfig, store: Store) -> Path | None:
    """Return the folder of a model from scratch, or None if it has not been trained yet."""
    inputs = pretrain_inputs(config, read_corpus(config))
    artifact = find_artifact(store.path("pretrain", inputs), inputs)
    return artifact and artifact.path / MODEL


def pretrained(
    config: FromScratchConfig, store: Store, progress: Callable[[int, int], None] = lambda done, total: None
) -> Artifact:
    """Return the artifact of a model from scratch, training it on first use; the model is in its folder `model`.

    Raises `UserError` if the data cannot be read, or if several processes would have to train it.
    """
    corpus = read_corpus(config)
    inputs = pretrain_inputs(config, corpus)
    path = store.path("pretrain", inputs)
    if PartialState().num_processes > 1 and not find_artifact(path, inputs):
        raise UserError(
            "a model from scratch is trained by one process: run python -m harness pretrain EXPERIMENT.yaml first"
        )

    def build(folder: Path) -> None:
        checkpoints = Checkpoints(partial_folder(path), inputs, config.pretrain.checkpoint_every)
        pretrain(config, corpus.texts, corpus.held_out, Job(Accelerator(), folder, progress, checkpoints))

    return build_artifact(path, "pretrain", inputs, build)


def export(artifact: Artifact, folder: Path, command: str) -> None:
    """Copy a model from scratch to `folder`, with a README that states the command, the data and the held-out loss."""
    shutil.copytree(artifact.path / MODEL, folder, dirs_exist_ok=True)
    record, inputs = read_json(artifact.path / RECORD), artifact.manifest["inputs"]
    held_out = record["held_out"]
    model = ", ".join(f"{name} {value}" for name, value in inputs["model"].items())
    training = ", ".join(f"{name} {value}" for name, value in inputs["pretrain"].items())
    texts, tokens, share = f"{record['texts']:,}", f"{record['tokens']:,}", f"{SHARES['policy']:.0%}"
    loss, perplexity = f"{held_out['loss']:.3f}", f"{held_out['perplexity']:.1f}"
    write_text(
        folder / "README.md",
        f"""# A small language model of film reviews

A Llama of {record["parameters"]:,} parameters with a byte-level BPE tokenizer, both made from nothing by

    {command}

- Data: {texts} reviews, {tokens} tokens, {share} of all reviews: those that neither the gold reward nor
  a prompt uses. {ORIGIN}
  sha256 of the list of texts: `{inputs["texts"]}`.
- Model: {model}; weights in bf16.
- Training: {training}. {record["steps"]:,} steps took {record["seconds"] / 60:.0f} minutes.
- Held out: cross-entropy {loss} nats per token, perplexity {perplexity}, measured on the
  {held_out["tokens"]:,} tokens of {held_out["texts"]:,} reviews that it has not seen.

It continues reviews, knows nothing else, and is good for the controlled experiment alone.
""",
    )
