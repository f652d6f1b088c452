"""The first batch that a cell is trained on, as the model sees it, with the tokens that the loss is computed on."""

from __future__ import annotations

from omegaconf import OmegaConf

from harness.backbones.language_model.preferences import read_labelled
from harness.backbones.language_model.tokens import TokenSplit
from harness.core.config import ExperimentConfig
from harness.core.errors import UserError
from harness.core.records import SFT, SeenSequence
from harness.core.store import find_artifact
from harness.experiment.cells import Cell, drawing_inputs
from harness.experiment.draft import draft_plan
from harness.experiment.file import merged
from harness.experiment.plan import Plan, make_plan
from harness.reporting.cell_files import CellFiles
from harness.run.example import seen
from harness.training.batch import effective_batches, sft_batches


def first_batch(stored: CellFiles) -> list[SeenSequence]:
    """Return the sequences of a cell's first optimiser step (for the SFT policy, that of SFT), pair by pair.

    The experiment is planned again from its manifest, which reads its data and its model's tokenizer. Raises
    `UserError` if one of them is missing, or if they now give the policy another key.
    """
    plan, cell = _planned_again(stored)
    split = _training_data(plan, cell.task)
    if cell.loss == SFT:
        config = plan.experiment.sft
        if not config.epochs:
            raise UserError(f"cell {cell.key} has no batch: sft.epochs=0, so that its policy is the base model")
        chosen = [example.chosen for example in split.examples if example.chosen is not None]
        rows = sft_batches(chosen, batch_size=config.batch_size, seed=config.seed, epoch=0)[0]
        return [seen("demonstration", split.sequences[row], plan.renderer) for row in rows]
    data, size = plan.resolved.losses[cell.loss].data, plan.experiment.train.batch_size
    batch = effective_batches(split.examples, batch_size=size, data=data, seed=cell.seed, epoch=0)[0]
    roles = ["chosen"] * len(batch.chosen) + ["rejected"] * len(batch.rejected)
    roles += ["further response"] * (len(batch.rows) - len(roles))
    order = [place for group in batch.groups() for place in group]
    return [seen(roles[place], split.sequences[batch.rows[place]], plan.renderer) for place in order]


def _planned_again(stored: CellFiles) -> tuple[Plan, Cell]:
    files = stored.experiment
    if "config" not in files.manifest:
        raise UserError(f"{files.folder} has no manifest.json, from which the batch is made again; run it again")
    manifest = f"{files.folder}/manifest.json"
    experiment = OmegaConf.to_object(merged(ExperimentConfig, OmegaConf.create(files.manifest["config"]), manifest))
    experiment.name, experiment.results = files.name, str(files.folder.parent)
    experiment.seeds = [stored.seed]
    if stored.loss != SFT:  # as the cell has it: the last run may have asked for other settings
        experiment.losses[stored.loss] = dict(stored.record.settings)
    draft = draft_plan(experiment, to_run=False)
    model = draft.model
    if model is None:
        raise UserError(f"the model from scratch that cell {stored.key} starts from is no longer in {files.store}")
    plan = make_plan(draft, model)
    for cell in plan.cells:
        if cell.key == stored.key:
            return plan, cell
    before = (stored.artifact("train") or {}).get("inputs", {})
    now = next((c.inputs for c in plan.cells if (c.task, c.loss) == (stored.task, stored.loss)), {})
    changed = ", ".join(name for name in {**before, **now} if before and before.get(name) != now.get(name))
    raise UserError(
        f"cell {stored.key} cannot be planned again: settings, data, model or code have changed since"
        + (f" (in what determines it, other than then: {changed})" if changed else "")
    )


def _training_data(plan: Plan, task: str) -> TokenSplit:
    """Return the preferences that the policies of a task are trained on; for a generating task, those it sampled."""
    planned = plan.tasks[task]
    split = planned.prepared.splits["train"]
    if planned.generation is None:
        return split
    drawn = find_artifact(plan.store.path("completions", drawing_inputs(planned, plan.starts[task])))
    if drawn is None:
        raise UserError(f"the completions that {task} trains on are not in {plan.store.root}; run the experiment")
    return read_labelled(drawn.path, "train", split, planned.generation.options)
