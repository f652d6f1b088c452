"""The stage `sample`: a policy's responses to the questions of a task, with their log-probs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harness.backbones.language_model.policy import TENSORS
from harness.backbones.language_model.responses import draw_responses
from harness.core.record_files import read_mapping, read_records, write_records
from harness.core.records import SAMPLE, SFT, START, TRAIN, Sample, stage_folder
from harness.core.store import Artifact, find_artifact, write_json
from harness.experiment.cells import Cell
from harness.run.stages.base import Stage, Target, for_each_evaluation
from harness.run.stages.sft import sft
from harness.run.stages.train import is_trained, train
from harness.run.worker import Worker
from harness.training.base import Progress
from harness.training.processes import build_together


def make(worker: Worker, cell: Cell, target: Target, progress: Progress) -> Artifact:
    """Return the responses of a cell's trained policy, sampled on first use and scored under policy and reference."""
    plan = worker.plan
    trained = find_artifact(plan.folder(cell) / TRAIN)
    asked = plan.tasks[target.task].prepared.questions[target.split]
    inputs = {
        "format": 2,
        "model": plan.model_hash,
        "start": read_mapping(trained.path / START).get(TENSORS),
        "trained": trained.manifest["files"].get(TENSORS),
        "decoding": plan.decoding,
        "seed": cell.seed,
        "prompts": asked.hash,
        **({"ends": plan.ends} if plan.ends else {}),
    }
    path = plan.folder(cell) / stage_folder(SAMPLE, target.task, split=target.split)
    if sampled := find_artifact(path, inputs):
        return sampled
    sft(worker, cell.task, progress)  # trained again if the store was deleted
    if not is_trained(worker, cell):  # from these weights: on another machine they come out otherwise
        train(worker, cell, progress)
        return make(worker, cell, target, progress)
    baselines = _baselines(worker, cell, target, progress)

    def build(folder: Path) -> None:
        samples = draw_samples(worker, cell, target, baselines, progress)
        write_records(folder, Sample, samples)
        if outputs := plan.tasks[target.task].task.outputs:
            write_json(folder / "model_outputs.json", outputs(samples, cell.label))

    return build_together(worker.accelerator, path, SAMPLE, inputs, build)


def draw_samples(
    worker: Worker,
    cell: Cell,
    target: Target,
    baselines: Mapping[str, str],
    progress: Progress,
    share: float | None = None,
) -> list[Sample]:
    """Sample a cell's policy, as it was after a share of its training (None: at the end), on a task's questions."""
    plan = worker.plan
    policies = [worker.policy(cell, share)]
    if cell.loss != SFT:
        policies.append(worker.reference_policy(cell.task))
    return draw_responses(
        policies,
        plan.tasks[target.task].prepared.questions[target.split],
        baselines,
        worker.sampler(worker.experiment.sample, cell.seed, plan.ends),
        worker.bare_source,
        worker.accelerator,
        progress,
    )


def _baselines(worker: Worker, cell: Cell, target: Target, progress: Progress) -> dict[str, str]:
    """Return the baseline of each question, by question id.

    A generating task has no baselines: it uses responses of the SFT policy, sampled with the same noise.
    """
    plan = worker.plan
    planned = plan.tasks[target.task]
    if planned.generation is None:
        return {q.id: q.baseline for q in planned.prepared.questions[target.split].questions}
    if cell.loss == SFT:
        return {}  # each response is its own baseline
    start = next(c for c in plan.cells if (c.task, c.loss, c.seed) == (cell.task, SFT, cell.seed))
    train(worker, start, progress)
    samples = read_records(Sample, make(worker, start, target, progress).path)
    return {sample.id: sample.response for sample in samples}


STAGE = Stage(SAMPLE, for_each_evaluation, make)
