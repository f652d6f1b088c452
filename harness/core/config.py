"""The schema of an experiment file, as typed dataclasses. Every setting ("dial") of the harness is here, with bounds.

A dial declared with `numeric=False` affects speed, memory or file locations, but no result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.core.dials import dial
from harness.core.duration import Every

SEEDS = 2**63  # torch, pandas and numpy take whole numbers below it
MOST = 2**31 - 1  # of what is counted; libraries in C count no further
WIDEST = 2**16  # of a model's sizes, but for its vocabulary and its context


@dataclass
class LoraConfig:
    """Low-rank adapters (peft). `targets` is what peft accepts: module names or "all-linear"."""

    rank: int = dial(16, at_least=1, at_most=WIDEST)
    alpha: float = dial(32.0, above=0, at_most=1e6)
    dropout: float = dial(0.0, below=1, at_least=0)  # see `ModelConfig.dropout`
    targets: str = "all-linear"


@dataclass
class OptimConfig:
    """Optimiser and schedule, the same for every loss."""

    lr: float = dial(5e-7, above=0)
    optimizer: Literal["adamw", "rmsprop"] = "rmsprop"
    weight_decay: float = dial(0.0, at_least=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up
    warmup_steps: int = dial(0, at_least=0, at_most=MOST)
    clip: float = dial(10.0, above=0)  # maximum gradient norm
    epochs: int = dial(1, at_least=1, at_most=MOST)
    batch_size: int = dial(64, at_least=1, at_most=MOST)  # pairs per effective batch, over all processes
    micro_batch_tokens: int = dial(8192, at_least=1, at_most=MOST, numeric=False)  # padded tokens in one forward pass
    # How often a run writes a checkpoint: steps ("50") or time ("90s", "5min").
    checkpoint_every: str = dial("5min", parse=Every.parse, numeric=False)


@dataclass
class PretrainConfig(OptimConfig):
    """Language modelling from random weights; `batch_size` counts windows of `context` tokens."""

    lr: float = dial(3e-3, above=0)
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    weight_decay: float = dial(0.01, at_least=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: int = dial(100, at_least=0, at_most=MOST)
    clip: float = dial(1.0, above=0)
    batch_size: int = dial(8, at_least=1, at_most=MOST)
    seed: int = dial(0, at_least=0, below=SEEDS)  # for the initial weights and the order of the windows


@dataclass
class FromScratchConfig:
    """A Llama with a byte-level BPE tokenizer, both trained from scratch on texts."""

    # The model's key contains the texts themselves, so the three dials that select them are not numeric.
    data: str = dial("packaged", numeric=False)  # packaged: the reviews that the sentiment task reserves for policies
    subset: str | None = dial(None, numeric=False)  # a hub data set's configuration or folder
    texts: int | None = dial(None, at_least=1, at_most=MOST, numeric=False)  # number of texts; None: all
    vocabulary: int = dial(4096, at_least=257, at_most=2**20)  # at least the 256 bytes and an end-of-text token
    hidden: int = dial(192, at_least=1, at_most=WIDEST)
    layers: int = dial(4, at_least=1, at_most=WIDEST)
    heads: int = dial(4, at_least=1, at_most=WIDEST)
    feed_forward: int = dial(512, at_least=1, at_most=WIDEST)
    context: int = dial(256, at_least=2, at_most=2**20)  # tokens
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)


@dataclass
class ModelConfig:
    """The model that every cell starts from: a packaged asset's name, a local folder, or a hub id."""

    # The model's key is its content, so what selects it is not numeric.
    name: str = dial("smollm2-135m-instruct", numeric=False)
    from_scratch: FromScratchConfig | None = None  # instead of `name`: a model that the experiment trains itself
    revision: str | None = dial(None, numeric=False)
    dtype: Literal["float32", "bfloat16"] = "float32"
    tune: Literal["full", "lora", "last_layers"] = "full"  # which weights are trained, in SFT and with every loss
    last_layers: int = dial(4, at_least=1, at_most=MOST)  # for tune: last_layers
    # For tune: last_layers: disk limit for the activations of the frozen layers.
    trunk_cap_gb: float = dial(20.0, above=0, numeric=False)
    lora: LoraConfig = field(default_factory=LoraConfig)  # for tune: lora
    # In SFT and with every loss, the rate of the dropout layers that the model itself has, whatever its config.json
    # says. Which values are dropped is drawn for each forward pass. With this or lora.dropout, what changes the passes
    # (micro_batch_tokens, shared_prompt, processes) therefore changes a policy as another seed would.
    dropout: float = dial(0.0, at_least=0, below=1)
    # Whether the model may run Python files of its folder. Whether it does, and the files, are part of its content.
    trust_remote_code: bool = dial(False, numeric=False)


@dataclass
class GenerateConfig:
    """Preferences between completions sampled from the SFT policy, for tasks whose data have no preferences.

    Sampling is untruncated, at temperature 1, up to the task's `max_completion_tokens`.
    """

    reward: str = "imdb_sentiment"  # a registered reward, module:function, or a classifier's folder or hub id
    samples: int = dial(2, at_least=1, at_most=10_000)  # completions per prompt; the best and the worst make a pair
    labels: Literal["pairs", "unpaired"] = "pairs"  # unpaired: single completions, desirable if reward > `threshold`
    threshold: float = dial(0.5)  # for labels: unpaired
    flip: float = dial(0.0, at_least=0, below=0.5)  # probability that a label is inverted
    prompt_words: int = dial(8, at_least=1, at_most=MOST)  # a prompt is the first `prompt_words` words of a text
    seed: int = dial(0, at_least=0, below=SEEDS)


@dataclass
class TaskConfig:
    """Where a task's data come from, how much of it is used, and how long its texts may be."""

    kind: str = ""  # a registered task; default: this section's key under `tasks`
    data: str = "packaged"  # "packaged", a file, a folder, or a hub id
    subset: str | None = None  # a hub data set's configuration or folder
    evaluates: list[str] = field(default_factory=list)  # tasks whose policies a task without training evaluates
    losses: list[str] | None = None  # which of the experiment's losses it trains with; None: all
    generate: GenerateConfig | None = None  # for a task that generates its preferences, such as sentiment
    train_pairs: int | None = dial(None, at_least=1, at_most=MOST)  # None: all
    dev_pairs: int | None = dial(256, at_least=1, at_most=MOST)
    # Questions for model selection; sampled only on request.
    dev_prompts: int | None = dial(256, at_least=1, at_most=MOST)
    test_prompts: int | None = dial(256, at_least=1, at_most=MOST)
    # Pairs that no policy trains on, for fitting the preference model.
    judge_pairs: int | None = dial(None, at_least=1, at_most=MOST)
    # Prompt and completion together must fit the model's context: with longrope, its original one.
    max_prompt_tokens: int = dial(256, at_least=1, at_most=MOST)
    max_completion_tokens: int = dial(256, at_least=1, at_most=MOST)
    overlong: Literal["truncate", "drop"] = "truncate"  # what happens to longer rows; both are counted


@dataclass
class SftConfig(OptimConfig):
    """Supervised fine-tuning on the chosen completions: the initial policy and the reference of every cell."""

    epochs: int = dial(1, at_least=0, at_most=MOST)  # 0: the model without fine-tuning
    seed: int = dial(0, at_least=0, below=SEEDS)


@dataclass
class TrainConfig(OptimConfig):
    """Preference training."""

    # Pack the completions of a prompt into one row, where the model supports it, so that each prompt is computed once
    # (also in SFT and for the reference).
    shared_prompt: bool = dial(True, numeric=False)
    # Steps between evaluations on the dev pairs; 0: only at start and end.
    eval_every: int = dial(0, at_least=0, at_most=MOST)
    keep_at: list[float] = dial([], above=0, below=1)  # fractions of the steps at which to keep the policy


@dataclass
class SampleConfig:
    """Decoding, the same for every policy. Greedy at temperature 0."""

    temperature: float = dial(1.0, at_least=0, at_most=1000)
    top_p: float = dial(0.95, above=0, at_most=1)
    max_new_tokens: int = dial(256, at_least=1, at_most=MOST)
    batch_size: int = dial(16, at_least=1, at_most=MOST, numeric=False)  # prompts per batch, for engine: hf
    engine: Literal["hf", "vllm"] = "hf"  # vllm: needs the extra "vllm", one process and a GPU; not with lora


@dataclass
class ExperimentConfig:
    """One experiment: losses x seeds x tasks on one backbone."""

    name: str = dial("", numeric=False)  # default: the file's name
    results: str = dial("results", numeric=False)
    figures: bool = dial(True, numeric=False)  # whether a run ends by drawing plots/; `report` always draws
    plugins: list[str] = field(default_factory=list)  # Python files that register losses, tasks or judges
    seeds: list[int] = dial([0], at_least=0, below=SEEDS)
    model: ModelConfig = field(default_factory=ModelConfig)
    second_reference: str = ""  # a name like model.name, with the same tokenizer; for losses such as mrpo
    encoder: str = "all-minilm-l6-v2"  # embeds prompts (RPO) and responses (preference_model)
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    losses: dict[str, Any] = field(default_factory=dict)  # name -> hyper-parameters; a list is a grid
    sft: SftConfig = field(default_factory=SftConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    # A registered kind and its options.
    judge: dict[str, Any] = field(default_factory=lambda: {"kind": "preference_model"})
    # A panel instead of one judge: name -> the same settings as `judge`, and tasks: [...].
    judges: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder of this experiment's results."""
        return Path(self.results) / self.name

    @property
    def store(self) -> Path:
        """The folder of the artifacts that experiments share."""
        return Path(self.results) / "store"
