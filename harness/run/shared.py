"""What the cells of a plan share: the SFT policies, the preferences, their token data, and the references' log-probs.

Each is made once, on first use, and kept: as an artifact in the store, and here while the plan runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from harness.backbones.language_model.needs import SUPPLIERS, LanguageModelSplit
from harness.backbones.language_model.policy import TENSORS, Policy, load_policy
from harness.backbones.language_model.preferences import draw, read_labelled
from harness.backbones.language_model.scoring import BatchSource, reference_logprobs, trunk_activations
from harness.backbones.language_model.self_refinement import augmented_prompt
from harness.backbones.language_model.sft import train_sft
from harness.backbones.language_model.shared_prompt import why_apart
from harness.backbones.language_model.tokens import Tokens, TokenSplit
from harness.core.assets import weights_hash
from harness.core.hashing import hash_value
from harness.core.prompt import prompt_text
from harness.core.store import Artifact, partial_folder
from harness.experiment.plan import Plan, drawing_inputs
from harness.training.base import Job, LogProbs, Progress
from harness.training.batch import Example
from harness.training.checkpoint import Checkpoints
from harness.training.processes import build_together
from harness.training.sharding import shard, sharding_asked

PROBES = 8  # prompts that are given a second completion to try sharing rows on


class Shared:
    """What the cells of one plan share; `reference_policy(task)` keeps one SFT policy loaded, as cells come by task."""

    def __init__(self, plan: Plan, accelerator: Accelerator):
        self.plan = plan
        self.experiment = plan.experiment
        self.store = plan.store
        self.accelerator = accelerator
        self.prepared = {name: planned.prepared for name, planned in plan.tasks.items()}
        self._made: dict[str, dict[str, TokenSplit]] = {}
        self._sources: dict[tuple[str, str], BatchSource] = {}
        self._references: dict[tuple[str, str], LogProbs] = {}
        self.reference_policy = lru_cache(maxsize=1)(self._load_reference_policy)
        self.check_model = lru_cache(maxsize=None)(self._check_model)

    def sft(self, task: str, progress: Progress) -> Artifact:
        """The SFT policy of a task: every cell's start and reference."""
        config, inputs = self.experiment.sft, self.plan.starts[task]
        path = self.store.path("sft", inputs)

        def build(folder: Path) -> None:
            split = self.prepared[task].splits["train"]
            completions = [e.chosen for e in split.examples if e.chosen is not None]
            policy = self.to_train(load_policy(self.plan.model, self.experiment.model, seed=config.seed))
            source = self._source(split.sequences, progress)
            source = dataclasses.replace(source, budget=config.micro_batch_tokens)
            checkpoints = Checkpoints(partial_folder(path), inputs, config.checkpoint_every)
            train_sft(policy, completions, source, config, Job(self.accelerator, folder, progress, checkpoints))

        return build_together(self.accelerator, path, "sft", inputs, build)

    def preferences(self, task: str, progress: Progress) -> dict[str, TokenSplit]:
        """The preferences that policies are trained on, by split; a generating task makes them of its SFT policy."""
        planned = self.plan.tasks[task]
        if planned.generation is None:
            return planned.prepared.splits
        if task not in self._made:
            inputs = drawing_inputs(planned, self.plan.starts[task])
            self.sft(task, progress)

            def build(folder: Path) -> None:
                draw(
                    self.reference_policy(task),
                    self.plan.renderer,
                    planned.prepared.splits,
                    planned.generation,
                    batch_size=self.experiment.sample.batch_size,
                    folder=folder,
                    progress=progress,
                )

            drawn = self.store.artifact("completions", inputs, build).path
            self._made[task] = {
                name: read_labelled(drawn, name, split, planned.generation.options)
                for name, split in planned.prepared.splits.items()
            }
        return self._made[task]

    def source(self, task: str, split: str, progress: Progress) -> BatchSource:
        """The token data of a split of preferences; where the last layers alone are trained, with the frozen ones' activations."""
        if (task, split) not in self._sources:
            sequences = self.preferences(task, progress)[split].sequences
            self._sources[task, split] = self._source(sequences, progress)
        return self._sources[task, split]

    def reference(self, task: str, split: str, progress: Progress) -> LogProbs:
        """The reference's log-probs of a split."""
        if (task, split) not in self._references:
            self._references[task, split] = self._reference(task, self.source(task, split, progress), progress)
        return self._references[task, split]

    def split(self, task: str, split: str, progress: Progress) -> LanguageModelSplit:
        found, config = self.preferences(task, progress), self.experiment.tasks[task]

        def embed(examples: Sequence[Example]) -> np.ndarray:
            return self.plan.encoder.stored([prompt_text(e.prompt) for e in examples])

        return LanguageModelSplit(
            found[split].examples,
            found[split].paired,
            found["train"].examples,
            self.source(task, split, progress),
            self.reference(task, split, progress),
            lambda source: self._reference(task, source, progress),
            embed,
            SUPPLIERS,
            lambda: self._second_reference(task, split, progress),
            lambda prompt: augmented_prompt(prompt, self.plan.tasks[task].task, config, self.plan.renderer),
        )

    def bare_source(self, sequences: list[Tokens], shared: bool = False) -> BatchSource:
        return BatchSource(sequences, self.plan.renderer.pad_token, self.experiment.train.micro_batch_tokens, shared)

    def to_train(self, policy: Policy) -> Policy:
        if sharding_asked() and self.accelerator.num_processes > 1:
            shard(self.to_device(policy))
        return self.to_device(policy)

    def to_device(self, policy: Policy) -> Policy:
        return policy.to(self.accelerator.device)

    def sft_folder(self, task: str) -> Path:
        """Where the SFT policy is, which was made before; looking it up takes no part of other processes."""
        return self.store.path("sft", self.plan.starts[task])

    def _check_model(self) -> str | None:
        """Load the base model as it will be trained, and check what training relies on; raises `UserError`.

        Return why completions of one prompt do not share a row in it, or None if they do.
        """
        policy = self._base_policy()
        policy.verify()
        if not self.experiment.train.shared_prompt:
            return "train.shared_prompt=false"
        splits = [split for prepared in self.prepared.values() for split in prepared.splits.values()]
        sequences = [sequence for split in splits for sequence in split.sequences]
        # What a generating task will sample is not there yet: any second completion of a prompt shows what it would.
        sequences += [dataclasses.replace(s, completion=s.completion[::-1]) for s in sequences[:PROBES]]
        return why_apart(policy, sequences, self.plan.renderer.pad_token)

    def _source(self, sequences: list[Tokens], progress: Progress) -> BatchSource:
        """Return a source of batches, with the frozen layers' activations where the last layers alone are trained."""
        source = self.bare_source(sequences, shared=self.check_model() is None)
        if self.experiment.model.tune != "last_layers":
            return source
        load, config = self._base_policy, self.experiment.model
        trunk = trunk_activations(self.store, load, self.plan.model_hash, config, source, progress)
        return dataclasses.replace(source, trunk=trunk)

    def _reference(self, task: str, source: BatchSource, progress: Progress) -> LogProbs:
        weights = hash_value([self.plan.model_hash, self.sft(task, progress).manifest["files"][TENSORS]])
        dtype = self.experiment.model.dtype
        return reference_logprobs(self.store, lambda: self.reference_policy(task), weights, dtype, source, progress)

    def _second_reference(self, task: str, split: str, progress: Progress) -> LogProbs:
        folder, model = self.plan.second_reference, dataclasses.replace(self.experiment.model, tune="full")
        source = self.bare_source(
            self.preferences(task, progress)[split].sequences
        )  # without the policy's frozen layers

        def load() -> Policy:
            return self.to_device(load_policy(folder, model))

        return reference_logprobs(self.store, load, weights_hash(folder), model.dtype, source, progress)

    def _base_policy(self) -> Policy:
        return self.to_device(load_policy(self.plan.model, self.experiment.model))

    def _load_reference_policy(self, task: str) -> Policy:
        return self.to_device(load_policy(self.plan.model, self.experiment.model, [self.sft_folder(task)]))
