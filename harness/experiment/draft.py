"""An experiment before its model exists: names looked up, settings checked, data read. Nothing is trained.

Most user errors are detected here, before anything expensive starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.backbones.language_model.decoder import context_of
from harness.backbones.language_model.from_scratch import find_pretrained
from harness.backbones.language_model.needs import SUPPLIERS
from harness.backbones.language_model.policy import check_folder
from harness.core.assets import model_folder
from harness.core.config import ExperimentConfig
from harness.core.encoder import Encoder
from harness.core.places import check_results
from harness.core.store import Store
from harness.core.user_code import user_code
from harness.experiment.checks import check_lengths, check_needs
from harness.experiment.plugins import load_plugins
from harness.experiment.resolve import Resolved, resolve
from harness.tasks import TaskData


@dataclass(frozen=True)
class Draft:
    """What is known about an experiment without its model. `data` holds each task's data as read."""

    experiment: ExperimentConfig
    resolved: Resolved
    data: dict[str, TaskData]
    encoder: Encoder
    store: Store

    @cached_property
    def model(self) -> Path | None:
        """The folder of the model; None if it had yet to be trained from scratch when it was first asked for.

        Raises `UserError` for a model that cannot be read.
        """
        model = self.experiment.model
        if model.from_scratch:
            return find_pretrained(model.from_scratch, self.store)
        return model_folder(model.name, model.revision, code=model.trust_remote_code)


def draft_plan(experiment: ExperimentConfig, *, to_run: bool = True) -> Draft:
    """Look up every name of an experiment, check what can be checked without its model, and read its data.

    Raises `UserError` or `RegistryError` for an unknown name or setting, data that cannot be read, a judge that could
    not work (including a missing key if the experiment is `to_run`), lengths beyond the model's context, or, if
    it is `to_run`, a results folder or a store that cannot be written.
    """
    load_plugins(experiment.plugins)
    resolved = resolve(experiment)
    for judge in resolved.judges.values():
        where = f"judges.{judge.name}" if judge.name else "judge"
        with user_code(where, judge.kind.make.__module__):
            judge.kind.check(judge.options, where, to_run=to_run)
    check_needs(resolved.losses.values(), SUPPLIERS)
    if to_run:
        check_results(experiment.folder, experiment.folder / "cells", experiment.store)
    store = Store(experiment.store)
    encoder = Encoder(experiment.encoder, store)
    data = {}
    for name, task in resolved.tasks.items():
        with user_code(f"tasks.{name}", task.load.__module__):
            data[name] = task.load(experiment.tasks[name])
    draft = Draft(experiment, resolved, data, encoder, store)
    check_lengths(experiment, _context(draft))
    return draft


def _context(draft: Draft) -> int | None:
    """Return the model's context in tokens; None if its configuration does not state it.

    Raises `UserError` for a model that cannot be loaded or trained as asked, as far as that shows without its weights.
    """
    model = draft.experiment.model
    if model.from_scratch:
        return model.from_scratch.context
    return context_of(check_folder(draft.model, model))
