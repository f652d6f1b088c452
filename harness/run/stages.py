"""The stages of a cell: train, sample, measure and judge. What cells share is made in `harness.run.shared`.

Each stage is an artifact: complete or absent, never computed twice. Stages know how to do one thing; the order, the
display and what to do about failures are `harness.run.runner`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from harness.backbones.language_model.measure import measure_samples
from harness.backbones.language_model.policy import TENSORS, Policy, load_policy
from harness.backbones.language_model.responses import draw_responses
from harness.backbones.language_model.scoring import Progress
from harness.backbones.language_model.vllm import check_engine
from harness.core.environment import environment
from harness.core.hashing import hash_value
from harness.core.record_files import read_records, write_record, write_records
from harness.core.records import (
    COUNTED,
    JUDGE,
    MEASURE,
    SAMPLE,
    SFT,
    TRAIN,
    Judgement,
    JudgeRecord,
    Measure,
    Sample,
    TrainSummary,
    cell_folder,
    stage_folder,
)
from harness.core.store import (
    Artifact,
    build_artifact,
    find_artifact,
    partial_folder,
    read_json,
    write_json,
)
from harness.evaluation.alpaca_eval.difficulty import DIFFICULTY
from harness.evaluation.base import Judge
from harness.experiment.cells import Cell
from harness.experiment.plan import Plan
from harness.run.judging import comparisons_of, judge_context
from harness.run.shared import Shared
from harness.training.checkpoint import Checkpoints
from harness.training.preference import kept_folder, train_preference
from harness.training.processes import build_together
from harness.training.sharding import check_launch

PATIENCE = timedelta(hours=6)  # how long a process waits for one that judges alone


class Stages:
    """The stages of one plan. Heavy things are made on first use and kept while they serve."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.experiment = plan.experiment
        self.store = plan.store
        check_launch(self.experiment)
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)]
        )
        check_engine(self.experiment, self.accelerator.num_processes)
        self.shared = Shared(plan, self.accelerator)
        self._policy = lru_cache(maxsize=1)(self._load_policy)  # one at a time
        self.judge_of = lru_cache(maxsize=None)(self._make_judge)

    def folder(self, cell: Cell) -> Path:
        """Where a cell's results are."""
        return cell_folder(self.experiment.folder, cell.key)

    def train(self, cell: Cell, progress: Progress) -> Artifact:
        """Train the cell's policy; for the SFT row there is nothing to train."""
        path = self.folder(cell) / TRAIN
        found = find_artifact(path, cell.inputs)
        if found:
            return found
        sft = self.shared.sft(cell.task, progress)

        def build(folder: Path) -> None:
            self._policy.cache_clear()  # what was sampled from last makes room
            self.shared.reference_policy.cache_clear()
            write_json(folder / "start.json", {TENSORS: sft.manifest["files"][TENSORS]})
            write_json(
                folder / "environment.json", environment() | {"shared_prompt": self.shared.check_model() or "on"}
            )
            if cell.loss == SFT:
                write_record(folder, TrainSummary())
                return
            policy = load_policy(self.plan.model, self.experiment.model, [sft.path], seed=cell.seed)
            loss = self.plan.resolved.losses[cell.loss]
            if "token_values" in loss.needs:
                policy.add_value_head()
            train_preference(
                self.shared.to_train(policy),
                loss,
                cell.settings,
                self.shared.split(cell.task, "train", loss, progress),
                self.shared.split(cell.task, "dev", loss, progress),
                self.experiment.train,
                cell.seed,
                self.accelerator,
                folder,
                progress,
                Checkpoints(partial_folder(path), cell.inputs, self.experiment.train.checkpoint_every),
            )

        return build_together(self.accelerator, path, TRAIN, cell.inputs, build)

    def sample(self, cell: Cell, task: str, progress: Progress) -> Artifact:
        """Sample the cell's policy on a task's test prompts, and score the samples under policy and reference."""
        prepared = self.shared.prepared[task]
        trained = find_artifact(self.folder(cell) / TRAIN)
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

        path = self.folder(cell) / stage_folder(SAMPLE, task)
        found = find_artifact(path, inputs)
        if found:
            return found
        self.shared.sft(cell.task, progress)  # if it is gone
        baselines = self._baselines(cell, task, progress)

        def build(folder: Path) -> None:
            samples = self._draw(cell, task, None, baselines, progress)
            write_records(folder, Sample, samples)
            if outputs := self.plan.tasks[task].task.outputs:
                write_json(folder / "model_outputs.json", outputs(samples, cell.label))

        return build_together(self.accelerator, path, SAMPLE, inputs, build)

    def measure(self, cell: Cell, task: str, progress: Progress) -> Artifact | None:
        """Where the reward is known: score the cell's policy by it and measure its divergence, at the end and as it was
        kept before. None where the task has no reward.
        """
        generation = self.plan.tasks[task].generation
        if generation is None:
            return None
        sampled = find_artifact(self.folder(cell) / stage_folder(SAMPLE, task))
        kept = [] if cell.loss == SFT else self.experiment.train.keep_at
        trained = find_artifact(self.folder(cell) / TRAIN).manifest["files"]
        inputs = {
            "format": 1,
            "sample": sampled.manifest["inputs"],
            "samples": sampled.manifest["files"][Sample.FILE],
            "kept": [[share, trained[str(kept_folder(Path(), share) / TENSORS)]] for share in kept],
            "reward": [generation.options.reward, generation.reward.version()],
        }

        def build(folder: Path) -> None:
            rows: list[Measure] = []
            for done, share in enumerate([*kept, None], start=1):
                if share is None:
                    drawn = read_records(Sample, sampled.path)
                else:
                    drawn = self._draw(cell, task, share, {}, lambda done, total: None)
                rows += measure_samples(
                    self._policy(cell, share),
                    self.shared.reference_policy(cell.task),
                    drawn,
                    share or 1.0,
                    self.shared.prepared[task],
                    generation.reward,
                    self.shared.bare_source,
                )
                progress(done, len(kept) + 1)
            write_records(folder, Measure, rows)

        return build_together(self.accelerator, self.folder(cell) / stage_folder(MEASURE, task), MEASURE, inputs, build)

    def judge(self, cell: Cell, task: str, name: str, progress: Progress) -> Artifact:
        """Judge the cell's samples on a task against its baseline, by the judge of this name ("" where there is one)."""
        judge = self.judge_of(cell.task, task, name)
        samples = find_artifact(self.folder(cell) / stage_folder(SAMPLE, task))
        choice = self.plan.resolved.judges[name]
        inputs = {
            "judge": judge.id,
            "options": choice.kind.identity(choice.options),
            "samples": samples.manifest["files"][Sample.FILE],
        }
        path = self.folder(cell) / stage_folder(JUDGE, task, name)

        def build(folder: Path) -> None:
            comparisons = comparisons_of(self.plan, task, samples)
            done = 0

            def advance(more: int) -> None:
                nonlocal done
                done += more
                progress(done, len(comparisons))

            write_records(folder, Judgement, judge.judge(comparisons, advance))
            write_record(folder, JudgeRecord(judge.id, name, judge.agreement))
            if hasattr(judge, "difficulty") and (table := judge.difficulty(comparisons)):
                write_json(folder / DIFFICULTY, table)

        def complete(found: Artifact) -> bool:
            """What is missing is asked again; what was answered is in the judge's cache."""
            return all(row.status in COUNTED for row in read_records(Judgement, found.path))

        return build_artifact(path, JUDGE, inputs, build, accept=complete)

    # ------------------------------------------------------------------ the making of it

    def _draw(
        self, cell: Cell, task: str, share: float | None, baselines: Mapping[str, str], progress: Progress
    ) -> list[Sample]:
        """Sample the cell's policy, as it was after a share of its training, on a task's test prompts."""
        policies = [self._policy(cell, share)]
        if cell.loss != SFT:
            policies.append(self.shared.reference_policy(cell.task))
        return draw_responses(
            policies,
            self.shared.prepared[task],
            baselines,
            self.experiment.sample,
            cell.seed,
            self.plan.renderer,
            self.shared.bare_source,
            self.accelerator,
            progress,
        )

    def _baselines(self, cell: Cell, task: str, progress: Progress) -> dict[str, str]:
        """Return what a cell's responses are judged against, by question; a question that is not there: the response itself.

        A generating task has no responses of its own: it takes those of the SFT policy, drawn with the same noise.
        """
        if self.plan.tasks[task].generation is None:
            return {q.id: q.baseline for q in self.shared.prepared[task].questions}
        if cell.loss == SFT:
            return {}
        start = next(c for c in self.plan.cells if (c.task, c.loss, c.seed) == (cell.task, SFT, cell.seed))
        self.train(start, progress)
        samples = read_records(Sample, self.sample(start, task, progress).path)
        return {sample.id: sample.response for sample in samples}

    def _load_policy(self, cell: Cell, share: float | None) -> Policy:
        """Load a cell's policy as it was after a share of its training, or (None) at the end."""
        if cell.loss == SFT:
            return self.shared.reference_policy(cell.task)
        tensors = [self.shared.sft_folder(cell.task), kept_folder(self.folder(cell) / TRAIN, share)]
        return self.shared.to_device(load_policy(self.plan.model, self.experiment.model, tensors))

    def _make_judge(self, trained_on: str, task: str, name: str) -> Judge:
        choice = self.plan.resolved.judges[name]
        return choice.kind.make(choice.options, judge_context(self.plan, trained_on, task, name))
