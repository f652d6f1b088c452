"""Batches of token data for one plan, with the frozen layers' activations if only the last layers are trained."""

from __future__ import annotations

import dataclasses

from harness.backbones.language_model.scoring import BatchSource, trunk_activations
from harness.backbones.language_model.tokens import Tokens
from harness.run.worker import Worker
from harness.training.base import Progress


def training_source(worker: Worker, sequences: list[Tokens], progress: Progress) -> BatchSource:
    """Return a source of training batches of sequences; responses share their prompt if the model supports it."""
    source = worker.bare_source(sequences, shared=worker.check_model() is None)
    model = worker.experiment.model
    if model.tune != "last_layers":
        return source
    trunk = trunk_activations(worker.store, worker.base_policy, worker.plan.model_hash, model, source, progress)
    return dataclasses.replace(source, trunk=trunk)
