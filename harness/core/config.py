"""What an experiment file may say, as typed dataclasses. Every dial of the harness is here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass
class LoraConfig:
    """Low-rank adapters (peft). `targets` as peft takes them: module names or "all-linear"."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str = "all-linear"


@dataclass
class OptimConfig:
    """Optimiser and schedule, the same for every loss."""

    lr: float = 5e-7
    optimizer: Literal["adamw", "rmsprop"] = "rmsprop"
    weight_decay: float = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up
    warmup_steps: int = 0
    clip: float = 10.0  # largest norm of the gradient
    epochs: int = 1
    batch_size: int = 64  # pairs in an effective batch, over all processes
    micro_batch_tokens: int = 8192  # padded tokens in one forward pass; changes speed and memory, no number
    checkpoint_every: str = (
        "5min"  # steps ("50") or time ("90s", "5min") between checkpoints of a run; changes no number
    )

    def numeric(self) -> dict[str, Any]:
        """Return the settings that determine numbers; how a batch is cut and laid out, and how often a run is kept, do not."""
        no_number = ("micro_batch_tokens", "shared_prompt", "checkpoint_every")
        return {key: value for key, value in asdict(self).items() if key not in no_number}


@dataclass
class PretrainConfig(OptimConfig):
    """Language modelling from random weights; a batch is of windows of `context` tokens."""

    lr: float = 3e-3
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    weight_decay: float = 0.01
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: int = 100
    clip: float = 1.0
    batch_size: int = 8
    seed: int = 0  # of the weights and of the order of the windows


@dataclass
class FromScratchConfig:
    """A Llama with a byte-level BPE tokenizer, both trained here on texts."""

    data: str = "packaged"  # reviews: those that the sentiment task leaves to policies (see harness.tasks.reviews)
    subset: str | None = None  # a hub data set's configuration or folder
    texts: int | None = None  # how many of them; None: all
    vocabulary: int = 4096
    hidden: int = 192
    layers: int = 4
    heads: int = 4
    feed_forward: int = 512
    context: int = 256  # tokens
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)


@dataclass
class ModelConfig:
    """The model that every cell starts from: a packaged asset's name, a local folder, or a hub id."""

    name: str = "smollm2-135m-instruct"
    from_scratch: FromScratchConfig | None = None  # in place of a name: a model that the experiment itself trains
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    tune: Literal["full", "lora", "last_layers"] = "full"  # what is trained, in SFT and in every loss alike
    last_layers: int = 4  # for tune: last_layers
    trunk_cap_gb: float = 20.0  # for tune: last_layers: the most that the frozen layers' activations may take on disk
    lora: LoraConfig = field(default_factory=LoraConfig)  # for tune: lora
    trust_remote_code: bool = False


@dataclass
class GenerateConfig:
    """Preferences between completions sampled from the SFT policy, for a task without preferences of its own.

    Sampling is untruncated, at temperature 1, up to the task's `max_completion_tokens`.
    """

    reward: str = "imdb_sentiment"  # a registered reward, module:function, or a classifier: a folder or a hub id
    samples: int = 2  # completions for each prompt; a pair is the best and the worst of them
    labels: Literal["pairs", "unpaired"] = "pairs"  # unpaired: each alone, desirable above a reward of `threshold`
    threshold: float = 0.5  # for labels: unpaired
    flip: float = 0.0  # probability that a label is the wrong way round
    prompt_words: int = 8  # a prompt is so many first words of a text
    seed: int = 0


@dataclass
class TaskConfig:
    """Where a task's data come from, how much of it is used, and how long its texts may be."""

    kind: str = ""  # a registered task; default: the key under which this stands
    data: str = "packaged"  # "packaged", a file, a folder, or a hub id
    subset: str | None = None  # a hub data set's configuration or folder
    evaluates: list[str] = field(default_factory=list)  # for a task that trains nothing: whose policies it evaluates
    losses: list[str] | None = None  # which of the experiment's losses it trains with; None: all
    generate: GenerateConfig | None = None  # for a task that makes its preferences, such as sentiment
    train_pairs: int | None = None  # None: all there are
    dev_pairs: int | None = 256
    dev_prompts: int | None = 256  # questions that select; sampled where something asks for them
    test_prompts: int | None = 256
    judge_pairs: int | None = None  # pairs kept from every policy, to fit the preference model on
    max_prompt_tokens: int = 256
    max_completion_tokens: int = 256
    overlong: Literal["truncate", "drop"] = "truncate"  # what happens to longer rows; both are counted


@dataclass
class SftConfig(OptimConfig):
    """Supervised fine-tuning on the chosen completions: the start and the reference of every cell."""

    seed: int = 0


@dataclass
class TrainConfig(OptimConfig):
    """Preference training."""

    # Completions of one prompt stand in one row, where the model can take it: each prompt is computed once, in SFT and
    # for the reference too. Changes speed and memory, no number.
    shared_prompt: bool = True
    eval_every: int = 0  # optimiser steps between evaluations on the dev pairs; 0: only at start and end
    keep_at: list[float] = field(
        default_factory=list
    )  # shares of the steps after which the policy is kept, to be measured


@dataclass
class SampleConfig:
    """Decoding, the same for every policy. Greedy at temperature 0."""

    temperature: float = 1.0
    top_p: float = 0.95
    max_new_tokens: int = 256
    batch_size: int = 16  # prompts at a time, for engine: hf; changes speed and memory
    engine: Literal["hf", "vllm"] = "hf"  # vllm: the extra of that name; one process, on a GPU, not with lora


@dataclass
class ExperimentConfig:
    """One experiment: losses x seeds x tasks on one backbone."""

    name: str = ""  # default: the file's name
    results: str = "results"
    figures: bool = True  # whether a run draws plots/ at its end; `report` always does. Changes no number
    plugins: list[str] = field(default_factory=list)  # Python files that register losses, tasks or judges
    seeds: list[int] = field(default_factory=lambda: [0])
    model: ModelConfig = field(default_factory=ModelConfig)
    second_reference: str = ""  # as model.name, with its tokenizer: beside the SFT policy, for losses such as mrpo
    encoder: str = "all-minilm-l6-v2"  # of prompts (RPO) and of responses (preference_model)
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    losses: dict[str, Any] = field(default_factory=dict)  # name -> hyper-parameters; a list is a grid
    sft: SftConfig = field(default_factory=SftConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    judge: dict[str, Any] = field(
        default_factory=lambda: {"kind": "preference_model"}
    )  # a registered kind, its options
    judges: dict[str, Any] = field(
        default_factory=dict
    )  # a panel instead: name -> what `judge` takes, and tasks: [...]

    @property
    def folder(self) -> Path:
        """Where this experiment's results go."""
        return Path(self.results) / self.name

    @property
    def store(self) -> Path:
        """Where the artifacts that experiments share go."""
        return Path(self.results) / "store"
