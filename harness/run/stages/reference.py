"""The stage `reference`: the reference's log-probs of the training data."""

from __future__ import annotations

from harness.backbones.language_model.scoring import BatchSource, reference_logprobs
from harness.experiment.cells import Cell
from harness.run.stages.base import Stage, Target, for_each_split_of_training
from harness.run.stages.completions import preferences
from harness.run.stages.sft import reference_hash
from harness.run.stages.trunk import preference_source
from harness.run.worker import Worker
from harness.training.base import LogProbs, Progress


def reference(worker: Worker, task: str, split: str, progress: Progress) -> LogProbs:
    """Return the reference's log-probs of a split of preferences."""

    def read() -> LogProbs:
        return reference_of(worker, task, preference_source(worker, task, split, progress), progress)

    return worker.memory.get("reference", (task, split), read)


def reference_of(worker: Worker, task: str, source: BatchSource, progress: Progress) -> LogProbs:
    """Return the log-probs of any sequences under a task's reference, computed once and stored by content."""
    weights = reference_hash(worker, task, progress)
    dtype = worker.experiment.model.dtype
    return reference_logprobs(worker.store, lambda: worker.reference_policy(task), weights, dtype, source, progress)


def second_reference(worker: Worker, task: str, split: str, progress: Progress) -> LogProbs:
    """Return the log-probs of a split of preferences under the experiment's second reference."""

    def read() -> LogProbs:
        # without the frozen layers' activations: they are the policy's
        source = worker.bare_source(preferences(worker, task, progress)[split].sequences)
        weights, dtype = worker.plan.second_hash, worker.experiment.model.dtype
        return reference_logprobs(worker.store, worker.second_policy, weights, dtype, source, progress)

    return worker.memory.get("second reference", (task, split), read)


def make(worker: Worker, cell: Cell, target: Target, progress: Progress) -> None:
    """Run the stage for a split."""
    reference(worker, cell.task, target.split, progress)


STAGE = Stage("reference", for_each_split_of_training, make, shared=True)
