"""The stage `measure`: where the reward is known, the rewards of a policy's responses and its divergence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.backbones.language_model.measure import measure_samples
from harness.backbones.language_model.policy import TENSORS
from harness.core.records import SFT
from harness.core.store import Artifact, find_artifact, read_jsonl, write_jsonl
from harness.experiment.cells import Cell
from harness.experiment.plan import Plan
from harness.run.stages.base import Stage, Target, evaluation_folder, for_each_evaluation
from harness.run.stages.sample import draw_rows
from harness.run.worker import Worker
from harness.training.base import Progress
from harness.training.preference import kept_folder
from harness.training.processes import build_together


def targets(plan: Plan, cell: Cell, splits: Sequence[str]) -> list[Target]:
    """Return the evaluations on tasks whose reward is known."""
    return [target for target in for_each_evaluation(plan, cell, splits) if plan.tasks[target.task].generation]


def make(worker: Worker, cell: Cell, target: Target, progress: Progress) -> Artifact:
    """Score a cell's policy by the reward and measure its divergence, at the end and as it was kept before."""
    plan = worker.plan
    folder, generation = plan.folder(cell), plan.tasks[target.task].generation
    sampled = find_artifact(folder / evaluation_folder("sample", target))
    kept = [] if cell.loss == SFT else worker.experiment.train.keep_at
    trained = find_artifact(folder / "train").manifest["files"]
    inputs = {
        "format": 1,
        "sample": sampled.manifest["inputs"],
        "samples": sampled.manifest["files"]["samples.jsonl"],
        "kept": [[share, trained[str(kept_folder(Path(), share) / TENSORS)]] for share in kept],
        "reward": [generation.options.reward, generation.reward.version()],
    }

    def build(into: Path) -> None:
        rows = []
        for done, share in enumerate([*kept, None], start=1):
            if share is None:
                drawn = read_jsonl(sampled.path / "samples.jsonl")
            else:
                drawn = draw_rows(worker, cell, target, {}, lambda done, total: None, share)
            measures = measure_samples(
                worker.policy(cell, share),
                worker.reference_policy(cell.task),
                drawn,
                plan.tasks[target.task].prepared.questions[target.split],
                generation.reward,
                worker.bare_source,
            )
            rows += [{"at": share or 1.0, **row} for row in measures]
            progress(done, len(kept) + 1)
        write_jsonl(into / "rows.jsonl", rows)

    return build_together(worker.accelerator, folder / evaluation_folder("measure", target), "measure", inputs, build)


STAGE = Stage("measure", targets, make)
