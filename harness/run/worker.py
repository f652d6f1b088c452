"""A process that carries out a plan: its accelerator, what it holds in memory, and what the cells of a task share."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from harness.backbones.language_model.policy import LanguageModel, load_policy, only_read
from harness.backbones.language_model.sampler import Sampler
from harness.backbones.language_model.sampling import Drawing
from harness.backbones.language_model.scoring import BatchSource
from harness.backbones.language_model.shared_prompt import why_apart
from harness.backbones.language_model.stepping import Steps, steps_of
from harness.backbones.language_model.tokens import Tokens
from harness.backbones.language_model.vllm import check_engine
from harness.core.config import SampleConfig
from harness.core.environment import environment
from harness.core.from_json import from_json
from harness.core.records import SFT, TRAIN, Environment, Failure
from harness.evaluation.base import Judge
from harness.experiment.cells import Cell
from harness.experiment.plan import Plan
from harness.run.judging import judge_context
from harness.run.memory import Memory
from harness.training.preference import kept_folder
from harness.training.sharding import check_launch, shard, sharding_asked

PATIENCE = timedelta(hours=6)  # how long the other processes wait while one judges
PROBES = 8  # prompts that get a second completion, to test shared rows with
LIMITS = {"policy": 1, "reference policy": 1}  # how many models of a kind are loaded at a time


class Worker:
    """One process of a run, or one of several that share an effective batch.

    Models and judges are made on first use and kept in memory. `broken` maps shared stages that failed to their
    failure, so that the next cell does not try them again. `unjudged` says, in a line for each cell and judge, how many
    verdicts are missing where some are there.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self.experiment = plan.experiment
        self.store = plan.store
        check_launch(self.experiment)
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)]
        )
        check_engine(self.experiment, self.accelerator.num_processes)
        self.memory = Memory(LIMITS)
        self.broken: dict[Hashable, Failure] = {}
        self.unjudged: list[str] = []
        self.attention = "unknown"  # the implementation that the model uses, once it has been loaded

    # ------------------------------------------------------------------ models

    def base_policy(self) -> LanguageModel:
        """Return the base model as it will be trained."""
        return self.to_device(load_policy(self.plan.model, self.experiment.model))

    def reference_policy(self, task: str) -> LanguageModel:
        """Return a task's SFT policy, which must be trained. One is kept in memory, since cells are ordered by task."""

        def load() -> LanguageModel:
            return self.to_device(load_policy(self.plan.model, self.experiment.model, [self.sft_folder(task)]))

        return self.memory.get("reference policy", task, load)

    def second_policy(self) -> LanguageModel:
        """Return the second reference, which the experiment must have."""
        return self.to_device(load_policy(self.plan.second_reference, only_read(self.experiment.model)))

    def policy(self, cell: Cell, share: float | None = None) -> LanguageModel:
        """Return a cell's policy as it was after a share of its training (None: at the end)."""
        if cell.loss == SFT:
            return self.reference_policy(cell.task)

        def load() -> LanguageModel:
            tensors = [self.sft_folder(cell.task), kept_folder(self.plan.folder(cell) / TRAIN, share)]
            return self.to_device(load_policy(self.plan.model, self.experiment.model, tensors))

        return self.memory.get("policy", (cell.key, share), load)

    def drop_policies(self) -> None:
        """Free the memory of loaded policies before another one is trained."""
        self.memory.drop("policy")
        self.memory.drop("reference policy")

    def to_train(self, policy: LanguageModel) -> LanguageModel:
        """Return a policy on the device, sharded over the processes if the run was launched that way."""
        if sharding_asked() and self.accelerator.num_processes > 1:
            shard(self.to_device(policy))
        return self.to_device(policy)

    def to_device(self, policy: LanguageModel) -> LanguageModel:
        """Return a policy on this process's device."""
        return policy.to(self.accelerator.device)

    def sft_folder(self, task: str) -> Path:
        """Return where a task's SFT policy is or will be."""
        return self.store.path("sft", self.plan.starts[task])

    def check_model(self) -> str | None:
        """Load the base model and a second reference once and check what training relies on; raises `UserError`.

        Return why completions of one prompt do not share a row in it, or None if they do.
        """
        return self.memory.get("model check", "", self._check_model)

    def environment(self) -> Environment:
        """Return what this process computes with: code, machine, versions, and the choices that are in no key."""
        shared = self.check_model() or "on"
        device = self.accelerator.device
        numerics = {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "fp32 products": torch.get_float32_matmul_precision(),
            "attention": self.attention,
        }
        return from_json(Environment, environment() | {"shared_prompt": shared, "numerics": numerics})

    def _check_model(self) -> str | None:
        policy = self.base_policy()
        self.attention = getattr(policy.model.config, "_attn_implementation", None) or "unknown"
        policy.verify()
        self.steps(policy)
        if self.plan.second_reference:
            self.second_policy().verify()
        if not self.experiment.train.shared_prompt:
            return "train.shared_prompt=false"
        splits = [split for planned in self.plan.tasks.values() for split in planned.prepared.splits.values()]
        sequences = [sequence for split in splits for sequence in split.sequences]
        # A generating task has not sampled its completions yet: reversed completions stand in for them.
        sequences += [dataclasses.replace(s, completion=s.completion[::-1]) for s in sequences[:PROBES]]
        return why_apart(policy, sequences, self.plan.renderer.pad_token)

    # ------------------------------------------------------------------ sampling

    def steps(self, base: LanguageModel | None = None) -> type[Steps]:
        """Return how the model is continued token by token, tried once on `base`; raises `UserError` if it cannot be.

        It is decided by the base model for all policies, so that they are sampled in the same way.
        """
        pad = self.plan.renderer.pad_token
        return self.memory.get("steps", "", lambda: steps_of(base or self.base_policy(), pad))

    def sampler(self, decoding: SampleConfig, seed: int, ends: Iterable[int] = ()) -> Sampler:
        """Return a sampler that stops at `ends` besides the end of turn and the end of sequence."""
        renderer = self.plan.renderer
        stops = sorted({*renderer.stop_tokens, *ends})
        return Sampler(Drawing(decoding, seed, stops, renderer.pad_token, self.steps()), renderer)

    # ------------------------------------------------------------------ data

    def bare_source(self, sequences: list[Tokens], shared: bool = False) -> BatchSource:
        """Return a source of batches of sequences, without the frozen layers' activations."""
        return BatchSource(sequences, self.plan.renderer.pad_token, self.experiment.train.micro_batch_tokens, shared)

    # ------------------------------------------------------------------ judges

    def judge(self, trained_on: str, task: str, name: str) -> Judge:
        """Return a judge by name ("": the only one), for policies trained on one task and evaluated on another."""

        def make() -> Judge:
            choice = self.plan.resolved.judges[name]
            return choice.kind.make(choice.options, judge_context(self.plan, trained_on, task, name))

        return self.memory.get("judge", (trained_on, task, name), make)
