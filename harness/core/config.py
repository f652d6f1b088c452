"""What an experiment file may say, as typed dataclasses. Every dial of the harness is here, with its bounds.

A dial declared with `numeric=False` changes speed or memory, or where things lie, but no number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.core.dials import dial
from harness.core.duration import Interval


@dataclass
class LoraConfig:
    """Low-rank adapters (peft). `targets` as peft takes them: module names or "all-linear"."""

    rank: int = dial(16, at_least=1)
    alpha: float = dial(32.0, above=0)
    dropout: float = dial(0.0, below=1, at_least=0)
    targets: str = "all-linear"


@dataclass
class OptimConfig:
    """Optimiser and schedule, the same for every loss."""

    lr: float = dial(5e-7, above=0)
    optimizer: Literal["adamw", "rmsprop"] = "rmsprop"
    weight_decay: float = dial(0.0, at_least=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up
    warmup_steps: int = dial(0, at_least=0)
    clip: float = dial(10.0, above=0)  # largest norm of the gradient
    epochs: int = dial(1, at_least=1)
    batch_size: int = dial(64, at_least=1)  # pairs in an effective batch, over all processes
    micro_batch_tokens: int = dial(8192, at_least=1, numeric=False)  # padded tokens in one forward pass
    # Between checkpoints of a run: steps ("50") or time ("90s", "5min").
    checkpoint_every: str = dial("5min", parse=Interval.parse, numeric=False)


@dataclass
class PretrainConfig(OptimConfig):
    """Language modelling from random weights; a batch is of windows of `context` tokens."""

    lr: float = dial(3e-3, above=0)
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    weight_decay: float = dial(0.01, at_least=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: int = dial(100, at_least=0)
    clip: float = dial(1.0, above=0)
    batch_size: int = dial(8, at_least=1)
    seed: int = dial(0, at_least=0)  # of the weights and of the order of the windows


@dataclass
class FromScratchConfig:
    """A Llama with a byte-level BPE tokenizer, both trained here on texts."""

    # The key of the model has the texts themselves, not the three dials that say which.
    data: str = dial("packaged", numeric=False)  # reviews: those that the sentiment task leaves to policies
    subset: str | None = dial(None, numeric=False)  # a hub data set's configuration or folder
    texts: int | None = dial(None, at_least=1, numeric=False)  # how many of them; None: all
    vocabulary: int = dial(4096, at_least=257)  # the 256 bytes, and a token that ends a text
    hidden: int = dial(192, at_least=1)
    layers: int = dial(4, at_least=1)
    heads: int = dial(4, at_least=1)
    feed_forward: int = dial(512, at_least=1)
    context: int = dial(256, at_least=2)  # tokens
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)


@dataclass
class ModelConfig:
    """The model that every cell starts from: a packaged asset's name, a local folder, or a hub id."""

    name: str = "smollm2-135m-instruct"
    from_scratch: FromScratchConfig | None = None  # in place of a name: a model that the experiment itself trains
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    tune: Literal["full", "lora", "last_layers"] = "full"  # what is trained, in SFT and in every loss alike
    last_layers: int = dial(4, at_least=1)  # for tune: last_layers
    # For tune: last_layers: the most that the frozen layers' activations may take on disk.
    trunk_cap_gb: float = dial(20.0, above=0, numeric=False)
    lora: LoraConfig = field(default_factory=LoraConfig)  # for tune: lora
    trust_remote_code: bool = False


@dataclass
class GenerateConfig:
    """Preferences between completions sampled from the SFT policy, for a task without preferences of its own.

    Sampling is untruncated, at temperature 1, up to the task's `max_completion_tokens`.
    """

    reward: str = "imdb_sentiment"  # a registered reward, module:function, or a classifier: a folder or a hub id
    samples: int = dial(2, at_least=1)  # completions for each prompt; a pair is the best and the worst of them
    labels: Literal["pairs", "unpaired"] = "pairs"  # unpaired: each alone, desirable above a reward of `threshold`
    threshold: float = dial(0.5)  # for labels: unpaired
    flip: float = dial(0.0, at_least=0, below=0.5)  # probability that a label is the wrong way round
    prompt_words: int = dial(8, at_least=1)  # a prompt is so many first words of a text
    seed: int = dial(0, at_least=0)


@dataclass
class TaskConfig:
    """Where a task's data come from, how much of it is used, and how long its texts may be."""

    kind: str = ""  # a registered task; default: the key under which this stands
    data: str = "packaged"  # "packaged", a file, a folder, or a hub id
    subset: str | None = None  # a hub data set's configuration or folder
    evaluates: list[str] = field(default_factory=list)  # for a task that trains nothing: whose policies it evaluates
    losses: list[str] | None = None  # which of the experiment's losses it trains with; None: all
    generate: GenerateConfig | None = None  # for a task that makes its preferences, such as sentiment
    train_pairs: int | None = dial(None, at_least=1)  # None: all there are
    dev_pairs: int | None = dial(256, at_least=1)
    dev_prompts: int | None = dial(256, at_least=1)  # questions that select; sampled where something asks for them
    test_prompts: int | None = dial(256, at_least=1)
    judge_pairs: int | None = dial(None, at_least=1)  # pairs kept from every policy, to fit the preference model on
    max_prompt_tokens: int = dial(256, at_least=1)
    max_completion_tokens: int = dial(256, at_least=1)
    overlong: Literal["truncate", "drop"] = "truncate"  # what happens to longer rows; both are counted


@dataclass
class SftConfig(OptimConfig):
    """Supervised fine-tuning on the chosen completions: the start and the reference of every cell."""

    epochs: int = dial(1, at_least=0)  # 0: the model as it is
    seed: int = dial(0, at_least=0)


@dataclass
class TrainConfig(OptimConfig):
    """Preference training."""

    # Completions of one prompt stand in one row, where the model can take it: each prompt is computed once, in SFT and
    # for the reference too.
    shared_prompt: bool = dial(True, numeric=False)
    eval_every: int = dial(0, at_least=0)  # steps between evaluations on the dev pairs; 0: only at start and end
    keep_at: list[float] = dial([], above=0, below=1)  # shares of the steps: the policy is kept there, to be measured


@dataclass
class SampleConfig:
    """Decoding, the same for every policy. Greedy at temperature 0."""

    temperature: float = dial(1.0, at_least=0)
    top_p: float = dial(0.95, above=0, at_most=1)
    max_new_tokens: int = dial(256, at_least=1)
    batch_size: int = dial(16, at_least=1, numeric=False)  # prompts at a time, for engine: hf
    engine: Literal["hf", "vllm"] = "hf"  # vllm: the extra of that name; one process, on a GPU, not with lora


@dataclass
class ExperimentConfig:
    """One experiment: losses x seeds x tasks on one backbone."""

    name: str = dial("", numeric=False)  # default: the file's name
    results: str = dial("results", numeric=False)
    figures: bool = dial(True, numeric=False)  # whether a run draws plots/ at its end; `report` always does
    plugins: list[str] = field(default_factory=list)  # Python files that register losses, tasks or judges
    seeds: list[int] = dial([0], at_least=0)
    model: ModelConfig = field(default_factory=ModelConfig)
    second_reference: str = ""  # as model.name, with its tokenizer: beside the SFT policy, for losses such as mrpo
    encoder: str = "all-minilm-l6-v2"  # of prompts (RPO) and of responses (preference_model)
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    losses: dict[str, Any] = field(default_factory=dict)  # name -> hyper-parameters; a list is a grid
    sft: SftConfig = field(default_factory=SftConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    # A registered kind and its options.
    judge: dict[str, Any] = field(default_factory=lambda: {"kind": "preference_model"})
    # A panel instead: name -> what `judge` takes, and tasks: [...].
    judges: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where this experiment's results go."""
        return Path(self.results) / self.name

    @property
    def store(self) -> Path:
        """Where the artifacts that experiments share go."""
        return Path(self.results) / "store"
