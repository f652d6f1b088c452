"""The setting that all contenders share: one model, one set of token pairs in one order, one optimiser."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import harness.tasks
from harness.backbones.language_model.tokens import Tokens, prepare_task
from harness.core.config import ModelConfig, TaskConfig, TrainConfig
from harness.core.render import Renderer
from harness.tasks.base import TASKS
from harness.training.batch import EffectiveBatch, Example, effective_batches

DATA = Path(harness.tasks.__file__).parent / "data"
BETA = 0.1
TEXTS = {"hh": ("chosen", "rejected"), "tldr": ("post", "model_summary", "human_summary")}
PROMPT_TOKENS = {"hh": 256, "tldr": 512}  # posts are long: 250 tokens on average at 256, 368 at 512
COMPLETION_TOKENS = 128
TOKENIZER_SIZE = 8192
# "tiny" is for the tests. The two largest have the shape and the vocabulary of Qwen2.5's models of that size.
SCALES = {
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"num_key_value_heads": 2, "vocab_size": 8192},
    "7m": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 4}
    | {"num_key_value_heads": 4, "vocab_size": 8192},
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    | {"num_key_value_heads": 2, "vocab_size": 151936},
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}
    | {"num_key_value_heads": 2, "vocab_size": 151936},
}


@dataclass(frozen=True)
class Setting:
    """A model folder, token pairs and how to train on them; `batches` is the epoch, in one order for all."""

    model: ModelConfig
    pad_token: int
    examples: list[Example]
    sequences: list[Tokens]
    train: TrainConfig
    micro_pairs: int
    device: torch.device
    scratch: Path
    embeddings: np.ndarray | None = None  # of the examples' prompts
    batches: list[EffectiveBatch] = field(init=False)

    def __post_init__(self) -> None:
        batches = effective_batches(self.examples, batch_size=self.train.batch_size, data="paired", seed=0, epoch=0)
        object.__setattr__(self, "batches", batches)

    @property
    def folder(self) -> Path:
        """The folder of the model."""
        return Path(self.model.name)

    def pairs(self) -> list[tuple[Tokens, Tokens]]:
        """Return (chosen, rejected) in the order of the epoch."""
        return [
            (self.sequences[i], self.sequences[j])
            for batch in self.batches
            for i, j in zip(batch.chosen, batch.rejected, strict=True)
        ]

    def mean_tokens(self) -> tuple[float, float]:
        """Return the mean number of tokens of a prompt and of a completion."""
        pairs = self.pairs()
        completions = sum(len(side.completion) for pair in pairs for side in pair)
        return sum(len(w.prompt) for w, _ in pairs) / len(pairs), completions / (2 * len(pairs))


class Watch:
    """Wall-clock seconds and this process's CPU seconds since the object was made; waits for the device to finish."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.started = self._now()

    def read(self) -> tuple[float, float]:
        """Return (seconds, CPU seconds)."""
        return tuple(now - then for now, then in zip(self._now(), self.started, strict=True))

    def _now(self) -> tuple[float, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter(), time.process_time()


@dataclass(frozen=True)
class Run:
    """Seconds of the epoch and of what was computed before it (the reference's log-probs), and each step's loss."""

    seconds: float
    cpu_seconds: float
    prepared: float
    losses: list[float]


def shared_parser(description: str, *, pairs: int, repeats: int) -> argparse.ArgumentParser:
    """Return the parser with the options that the benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--pairs", type=int, default=pairs, help="preference pairs in the epoch")
    parser.add_argument("--repeats", type=int, default=repeats, help="runs of each contender, alternating")
    parser.add_argument("--dataset", choices=sorted(TEXTS), default="hh")
    parser.add_argument("--batch-size", type=int, default=16, help="pairs in an effective batch")
    parser.add_argument("--micro-pairs", type=int, default=8, help="pairs in TRL's and the plain loop's micro-batches")
    parser.add_argument("--scale", choices=list(SCALES), default="7m", help="the model")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    parser.add_argument("--out", type=Path, help="folder for the figures as JSON, and for plots")
    return parser


def checked(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; exit with status 2 and one line about options that cannot be run."""
    options = parser.parse_args()
    if options.pairs < 1 or options.pairs % options.batch_size or options.batch_size % options.micro_pairs:
        parser.error("--pairs must be a multiple of --batch-size, and that a multiple of --micro-pairs")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    return options


def make_setting(options: argparse.Namespace, scratch: Path) -> Setting:
    """Build the model and its tokenizer in `scratch`, and tokenise the pairs."""
    torch.set_num_threads(options.threads)
    tokenizer = _tokenizer()
    folder = _model(scratch / "model", options.scale, tokenizer)
    examples, sequences = _pairs(options.dataset, options.pairs, Renderer(tokenizer))
    # The learning rate is high enough that the loss changes from step to step.
    train = TrainConfig(lr=1e-4, optimizer="adamw", batch_size=options.batch_size)
    model = ModelConfig(name=str(folder), dtype=options.dtype)
    return Setting(
        model,
        tokenizer.pad_token_id,
        examples,
        sequences,
        train,
        options.micro_pairs,
        torch.device(options.device),
        scratch,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer, trained on the packaged texts."""
    texts = []
    for name, columns in TEXTS.items():
        with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            for row in map(json.loads, file):
                texts += [row[column] for column in columns if row.get(column)]
    bpe = ByteLevelBPETokenizer()
    end = "<|endoftext|>"
    bpe.train_from_iterator(texts, vocab_size=TOKENIZER_SIZE, special_tokens=[end], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=end, pad_token=end)


def _model(folder: Path, scale: str, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Write a Llama with random weights, each a bf16 number, so that both dtypes start with the same weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SCALES[scale],
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).bfloat16().float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def task_config(dataset: str, pairs: int, dev_pairs: int = 1) -> TaskConfig:
    """Return the configuration of a packaged data set with this many training pairs."""
    return TaskConfig(
        train_pairs=pairs,
        dev_pairs=dev_pairs,
        test_prompts=1,
        max_prompt_tokens=PROMPT_TOKENS[dataset],
        max_completion_tokens=COMPLETION_TOKENS,
    )


def _pairs(dataset: str, count: int, renderer: Renderer) -> tuple[list[Example], list[Tokens]]:
    """Return the first `count` training pairs of a packaged data set as tokens."""
    config, task = task_config(dataset, count), TASKS.get(dataset)
    split = prepare_task(dataset, task, task.load(config), config, renderer).splits["train"]
    if len(split.examples) < count:
        raise SystemExit(f"--pairs {count}: {dataset} has {len(split.examples)} training pairs")
    return split.examples, split.sequences
