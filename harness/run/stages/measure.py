"""The stage `measure`: rewards of a policy's responses and its divergence, for tasks with a known reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.backbones.language_model.measure import measure_samples
from harness.backbones.language_model.policy import TENSORS
from harness.core.record_files import read_records, write_records
from harness.core.records import MEASURE, SAMPLE, SFT, TRAIN, Measure, Sample, stage_folder
from harness.core.store import Artifact, find_artifact
from harness.experiment.cells import Cell
from harness.experiment.plan import Plan
from harness.run.stages.base import Stage, Target, for_each_evaluation
from harness.run.stages.sample import draw_samples
from harness.run.worker import Worker
from harness.training.base import Progress
from harness.training.preference import kept_folder
from harness.training.processes import build_together


def targets(plan: Plan, cell: Cell, splits: Sequence[str]) -> list[Target]:
    """Return the evaluations on tasks with a known reward."""
    return [target for target in for_each_evaluation(plan, cell, splits) if plan.tasks[target.task].generation]


def make(worker: Worker, cell: Cell, target: Target, progress: Progress) -> Artifact:
    """Measure the reward and the divergence of a cell's policy, at the end and at each kept share of its training."""
    plan = worker.plan
    folder, generation = plan.folder(cell), plan.tasks[target.task].generation
    sampled = find_artifact(folder / stage_folder(SAMPLE, target.task, split=target.split))
    kept = [] if cell.loss == SFT else worker.experiment.train.keep_at
    trained = find_artifact(folder / TRAIN).manifest["files"]
    inputs = {
        "format": 1,
        "sample": sampled.manifest["inputs"],
        "samples": sampled.manifest["files"][Sample.FILE],
        "kept": [[share, trained[str(kept_folder(Path(), share) / TENSORS)]] for share in kept],
        "reward": [generation.options.reward, generation.reward.version()],
    }

    def build(into: Path) -> None:
        rows: list[Measure] = []
        for done, share in enumerate([*kept, None], start=1):
            if share is None:
                drawn = read_records(Sample, sampled.path)
            else:
                drawn = draw_samples(worker, cell, target, {}, lambda done, total: None, share)
            rows += measure_samples(
                worker.policy(cell, share),
                worker.reference_policy(cell.task),
                drawn,
                share or 1.0,
                plan.tasks[target.task].prepared.questions[target.split],
                generation.reward,
                worker.bare_source,
            )
            progress(done, len(kept) + 1)
        write_records(into, Measure, rows)

    return build_together(
        worker.accelerator, folder / stage_folder(MEASURE, target.task, split=target.split), MEASURE, inputs, build
    )


STAGE = Stage(MEASURE, targets, make)
