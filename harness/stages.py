"""The stages of an experiment: SFT and reference once per task, then train, sample and judge for each cell.

Each stage is an artifact: complete or absent, never computed twice. Stages know how to do one thing; the order, the
display and what to do about failures are `harness.run`'s.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list

from harness.environment import environment
from harness.evaluation.base import COUNTED, Comparison, Judge, JudgeContext
from harness.evaluation.sampling import sample
from harness.hashing import hash_value
from harness.plan import Cell, Plan
from harness.resolve import SFT
from harness.store import Artifact, build_artifact, find_artifact, read_json, read_jsonl, write_json, write_jsonl
from harness.training.data import Tokens, prompt_text
from harness.training.policy import TENSORS, Policy, load_policy
from harness.training.precompute import (
    BatchSource,
    Progress,
    TokenLogProbs,
    reference_logprobs,
    score,
    trunk_activations,
)
from harness.training.preference import Split, train_preference
from harness.training.sft import train_sft

PATIENCE = timedelta(hours=6)  # how long a process waits for one that samples or judges alone


class Stages:
    """The stages of one plan. Heavy things are made on first use and kept while they serve."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.experiment = plan.experiment
        self.store = plan.store
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)]
        )
        self.prepared = {name: planned.prepared for name, planned in plan.tasks.items()}
        self._sources: dict[tuple[str, str], BatchSource] = {}
        self._references: dict[tuple[str, str], TokenLogProbs] = {}
        # One policy and one reference at a time: cells come in the order of their tasks.
        self._policy = lru_cache(maxsize=1)(self._load_policy)
        self._reference_policy = lru_cache(maxsize=1)(self._load_reference_policy)
        self.judge_of = lru_cache(maxsize=None)(self._make_judge)

    # ------------------------------------------------------------------ what cells share

    def check_model(self) -> None:
        """Load the base model as it will be trained, and check what training relies on; raises `UserError`."""
        self._base_policy().verify()

    def sft(self, task: str, progress: Progress) -> Artifact:
        """The SFT policy of a task: every cell's start and reference."""
        config, inputs = self.experiment.sft, self.plan.starts[task]

        def build(folder: Path) -> None:
            completions = [e.chosen for e in self.prepared[task].splits["train"].examples if e.chosen is not None]
            policy = self._to_device(load_policy(self.plan.model, self.experiment.model, seed=config.seed))
            batches = self.source(task, "train", progress)
            train_sft(policy, completions, batches, config, self.accelerator, folder, progress)

        return self._together(self.store.path("sft", inputs), "sft", inputs, build)

    def source(self, task: str, split: str, progress: Progress) -> BatchSource:
        """The token data of a split; where the last layers alone are trained, with the frozen ones' activations."""
        if (task, split) not in self._sources:
            source = self._bare_source(self.prepared[task].splits[split].sequences)
            if self.experiment.model.tune == "last_layers":
                load, config = self._base_policy, self.experiment.model
                trunk = trunk_activations(self.store, load, self.plan.model_hash, config, source, progress)
                source = dataclasses.replace(source, trunk=trunk)
            self._sources[task, split] = source
        return self._sources[task, split]

    def reference(self, task: str, split: str, progress: Progress) -> TokenLogProbs:
        """The reference's log-probs of a split."""
        if (task, split) not in self._references:
            weights = hash_value([self.plan.model_hash, self.sft(task, progress).manifest["files"][TENSORS]])
            dtype, source = self.experiment.model.dtype, self.source(task, split, progress)
            self._references[task, split] = reference_logprobs(
                self.store, lambda: self._reference_policy(task), weights, dtype, source, progress
            )
        return self._references[task, split]

    def embeddings(self, task: str, split: str) -> np.ndarray:
        """The prompt embeddings of a split's examples, `(examples, d)`."""
        return self.plan.encoder.stored([prompt_text(e.prompt) for e in self.prepared[task].splits[split].examples])

    # ------------------------------------------------------------------ a cell's own

    def folder(self, cell: Cell) -> Path:
        """Where a cell's results are."""
        return self.experiment.folder / "cells" / cell.key

    def train(self, cell: Cell, progress: Progress) -> Artifact:
        """Train the cell's policy; for the SFT row there is nothing to train."""

        path = self.folder(cell) / "train"
        found = find_artifact(path, cell.inputs)
        if found:
            return found
        sft = self.sft(cell.task, progress)

        def build(folder: Path) -> None:
            self._policy.cache_clear()  # what was sampled from last makes room
            self._reference_policy.cache_clear()
            write_json(folder / "start.json", {TENSORS: sft.manifest["files"][TENSORS]})
            write_json(folder / "environment.json", environment())
            if cell.loss == SFT:
                nothing = {"steps": 0, "examples": 0, "tokens": 0, "forward_passes": 0, "seconds": 0.0, "dev": None}
                write_json(folder / "summary.json", nothing)
                return
            policy = load_policy(self.plan.model, self.experiment.model, [sft.path], seed=cell.seed)
            loss = self.plan.resolved.losses[cell.loss]
            embeds = "prompt_embeddings" in loss.needs
            train_preference(
                self._to_device(policy),
                loss,
                cell.settings,
                self._split(cell.task, "train", embeds, progress),
                self._split(cell.task, "dev", embeds, progress),
                self.experiment.train,
                cell.seed,
                self.accelerator,
                folder,
                progress,
            )

        return self._together(path, "train", cell.inputs, build)

    def sample(self, cell: Cell, task: str, progress: Progress) -> Artifact:
        """Sample the cell's policy on a task's test prompts, and score the samples under policy and reference."""
        prepared, renderer = self.prepared[task], self.plan.renderer
        trained = find_artifact(self.folder(cell) / "train")
        inputs = {
            "format": 1,
            "model": self.plan.model_hash,
            "start": read_json(trained.path / "start.json")[TENSORS],
            "trained": trained.manifest["files"].get(TENSORS),
            "decoding": self.plan.decoding,
            "seed": cell.seed,
            "prompts": hash_value(
                [[q.id, q.baseline, ids] for q, ids in zip(prepared.questions, prepared.question_ids, strict=True)]
            ),
        }

        path = self.folder(cell) / f"sample-{task}"
        found = find_artifact(path, inputs)
        if found:
            return found
        self.sft(cell.task, progress)  # if it is gone: all processes take part, which none can that waits for the lock

        def build(folder: Path) -> None:
            policy = self._policy(cell)
            with policy.autocast():
                samples = sample(
                    policy.model,
                    prepared.question_ids,
                    [q.id for q in prepared.questions],
                    decoding=self.experiment.sample,
                    seed=cell.seed,
                    stop_tokens=renderer.stop_tokens,
                    pad_token=renderer.pad_token,
                    progress=progress,
                )
            sequences = [Tokens(ids, s.ids) for ids, s in zip(prepared.question_ids, samples, strict=True)]
            batches = self._bare_source(sequences)
            policies = [policy] if cell.loss == SFT else [policy, self._reference_policy(cell.task)]
            scored = score(policies, batches)
            every = range(len(sequences))
            logps, reference_logps = scored[0].sums(every).tolist(), scored[-1].sums(every).tolist()
            write_jsonl(
                folder / "samples.jsonl",
                (
                    {
                        "id": q.id,
                        "prompt": [dataclasses.asdict(m) for m in q.prompt],
                        "response": renderer.decode(s.ids),
                        "baseline": q.baseline,
                        "tokens": len(s.ids),
                        "finished": s.finished,
                        "logp": logp,
                        "reference_logp": reference_logp,
                    }
                    for q, s, logp, reference_logp in zip(
                        prepared.questions, samples, logps, reference_logps, strict=True
                    )
                ),
            )

        return build_artifact(path, "sample", inputs, build)

    def judge(self, cell: Cell, task: str, progress: Progress) -> Artifact:
        """Judge the cell's samples on a task against its baseline."""
        judge = self.judge_of(cell.task, task)
        samples = find_artifact(self.folder(cell) / f"sample-{task}")
        inputs = {
            "judge": judge.id,
            "options": self.plan.resolved.judge.identity(self.plan.resolved.judge_options),
            "samples": samples.manifest["files"]["samples.jsonl"],
        }
        path = self.folder(cell) / f"judge-{task}"

        def build(folder: Path) -> None:
            rows = read_jsonl(samples.path / "samples.jsonl")
            prompts = {q.id: q.prompt for q in self.prepared[task].questions}
            comparisons = [Comparison(r["id"], prompts[r["id"]], r["response"], r["baseline"]) for r in rows]
            done = 0

            def advance(more: int) -> None:
                nonlocal done
                done += more
                progress(done, len(comparisons))

            judgements = judge.judge(comparisons, advance)
            write_jsonl(folder / "judgements.jsonl", map(dataclasses.asdict, judgements))
            agreement = dataclasses.asdict(judge.agreement) if judge.agreement else None
            write_json(folder / "judge.json", {"id": judge.id, "agreement": agreement})

        def complete(found: Artifact) -> bool:
            """What is missing is asked again; what was answered is in the judge's cache."""
            return all(row["status"] in COUNTED for row in read_jsonl(found.path / "judgements.jsonl"))

        return build_artifact(path, "judge", inputs, build, accept=complete)

    # ------------------------------------------------------------------ the making of it

    def _together(self, path: Path, kind: str, inputs: dict, build: Callable[[Path], None]) -> Artifact:
        """Build an artifact in which all processes take part; only the main one's files are kept.

        (What a single process can build needs no more than the store's lock: one builds it, the others wait.)
        """
        found = find_artifact(path, inputs)
        if found or self.accelerator.num_processes == 1:
            return found or build_artifact(path, kind, inputs, build)
        if self.accelerator.is_main_process:
            built = []

            def tell_and_build(folder: Path) -> None:
                built.append(True)
                broadcast_object_list([True])
                build(folder)

            build_artifact(path, kind, inputs, tell_and_build)
            if not built:  # another run built it while this one waited for the lock
                broadcast_object_list([False])
        elif broadcast_object_list([None])[0]:
            with tempfile.TemporaryDirectory() as scratch:
                build(Path(scratch))
        self.accelerator.wait_for_everyone()
        return Artifact(path)

    def _bare_source(self, sequences: list[Tokens]) -> BatchSource:
        return BatchSource(sequences, self.plan.renderer.pad_token, self.experiment.train.micro_batch_tokens)

    def _split(self, task: str, split: str, embeds: bool, progress: Progress) -> Split:
        tokens = self.prepared[task].splits[split]
        return Split(
            tokens.examples,
            tokens.paired,
            self.source(task, split, progress),
            self.reference(task, split, progress),
            self.embeddings(task, split) if embeds else None,
        )

    def _to_device(self, policy: Policy) -> Policy:
        return policy.to(self.accelerator.device)

    def _base_policy(self) -> Policy:
        return self._to_device(load_policy(self.plan.model, self.experiment.model))

    def _sft_folder(self, task: str) -> Path:
        """Where the SFT policy is, which was made before; looking it up takes no part of other processes."""
        return self.store.path("sft", self.plan.starts[task])

    def _load_reference_policy(self, task: str) -> Policy:
        return self._to_device(load_policy(self.plan.model, self.experiment.model, [self._sft_folder(task)]))

    def _load_policy(self, cell: Cell) -> Policy:
        if cell.loss == SFT:
            return self._reference_policy(cell.task)
        tensors = [self._sft_folder(cell.task), self.folder(cell) / "train"]
        return self._to_device(load_policy(self.plan.model, self.experiment.model, tensors))

    def _make_judge(self, trained_on: str, task: str) -> Judge:
        """The judge of a task; where the task has no preferences of its own, it learns from those of the training task."""
        own = bool(self.prepared[task].judge_fit)
        source = self.prepared[task if own else trained_on]
        context = JudgeContext(
            template=self.plan.tasks[task].task.template,
            fit=source.judge_fit,
            held_out=source.judge_test,
            labels=source.labels if own else f"{source.labels}, on {trained_on}",
            embed=self.plan.encoder.embed,
            encoder=self.plan.encoder.hash,
            store=self.store,
            cache=self.store.root,
        )
        return self.plan.resolved.judge.make(self.plan.resolved.judge_options, context)
