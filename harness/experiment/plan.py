"""Turns a draft and its model into a plan: tokenised data, cells, and the keys of everything to compute.

Nothing is trained here. A model trained from scratch is made before, as the first stage of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.backbones.language_model.decoder import dropout_rates
from harness.backbones.language_model.policy import check_folder, load_tokenizer, model_settings, only_read
from harness.backbones.language_model.sampler import ends_named_by
from harness.backbones.language_model.scoring import stored_at
from harness.backbones.language_model.token_store import TokenStore
from harness.core.assets import model_folder, weights_hash
from harness.core.config import ExperimentConfig
from harness.core.dials import numeric
from harness.core.encoder import Encoder
from harness.core.errors import UserError
from harness.core.hashing import hash_value
from harness.core.pretrained import check_ids
from harness.core.prompt import prompt_text
from harness.core.records import SFT, CellRecord, PlanRecord, cell_folder
from harness.core.render import Renderer
from harness.core.store import Store, key_of
from harness.experiment.cells import Cell, CellMaker, PlannedTask, start_inputs
from harness.experiment.checks import check_data, check_trunk
from harness.experiment.draft import Draft
from harness.experiment.resolve import Resolved
from harness.training.supply import KeyInputs
from losses import Loss


@dataclass(frozen=True)
class Plan:
    """Everything that a run needs to know before it begins."""

    experiment: ExperimentConfig
    resolved: Resolved
    model: Path
    model_hash: str
    renderer: Renderer
    encoder: Encoder
    tasks: dict[str, PlannedTask]
    starts: dict[str, dict]  # by training task: what determines its SFT policy
    cells: list[Cell]
    store: Store
    second_reference: Path | None = None
    second_hash: str | None = None
    ends: tuple[int, ...] = ()  # tokens that end a sample besides those that the renderer knows

    def cell(self, key: str) -> Cell:
        """Return the cell with this key; raises `KeyError` if the plan has none."""
        return {cell.key: cell for cell in self.cells}[key]

    def folder(self, cell: Cell) -> Path:
        """Return the folder of a cell's results."""
        return cell_folder(self.experiment.folder, cell.key)

    @property
    def decoding(self) -> dict:
        """The sampling settings that determine a response. The number drawn at once is not one of them."""
        return numeric(self.experiment.sample)

    @cached_property
    def trunk_bytes(self) -> int:
        """Disk space for the frozen layers' activations, in bytes; 0 unless `model.tune` is last_layers."""
        model = self.experiment.model
        if model.tune != "last_layers":
            return 0
        splits = [split for planned in self.tasks.values() for split in planned.prepared.splits.values()]
        tokens = sum(stored_at(split.sequences)[-1] for split in splits)
        width = model_settings(self.model, model).get_text_config().hidden_size
        return tokens * width * (4 if model.dtype == "float32" else 2)

    def description(self) -> PlanRecord:
        """Return the plan as reporting reads it."""
        return PlanRecord(
            experiment=self.experiment.name,
            baselines={name: planned.task.baseline for name, planned in self.tasks.items()},
            decoding=self.decoding,
            judges={name: [judge.name for judge in self.resolved.judges_of(name)] for name in self.tasks},
            starts={name: key_of(inputs) for name, inputs in self.starts.items()},
            cells=tuple(self.describe(cell) for cell in self.cells),
        )

    def describe(self, cell: Cell) -> CellRecord:
        """Return one cell as reporting reads it."""
        loss = self.resolved.losses.get(cell.loss)
        return CellRecord(
            key=cell.key,
            trained_on=cell.task,
            loss=cell.loss,
            settings=dict(cell.settings),
            seed=cell.seed,
            point=cell.point,
            reduction=loss.reduction if loss else "",
            paper=loss.paper if loss else "",
            data=loss.data if loss else "",
            evaluated_on=cell.evaluated_on,
        )


def make_plan(draft: Draft, model: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> Plan:
    """Tokenise the data of a draft for a model (a folder) and expand the experiment into cells.

    `progress(done, total)` is called with numbers of rows while they are tokenised; tokens in the store are read.

    Raises `UserError` for data that do not fit the losses or the lengths, a second reference with another tokenizer,
    or activations of frozen layers that would exceed `model.trunk_cap_gb` on disk.
    """
    experiment, resolved = draft.experiment, draft.resolved
    renderer = Renderer(load_tokenizer(model, experiment.model))
    ends = tuple(end for end in ends_named_by(model) if end not in renderer.stop_tokens)
    runs_code = experiment.model.trust_remote_code
    model_hash = weights_hash(model, code=runs_code)
    tokens = TokenStore(draft.store, renderer, model_hash)
    tasks = {
        name: PlannedTask(
            name,
            task,
            tokens.prepare(name, task, draft.data[name], experiment.tasks[name], progress),
            draft.data[name].hash,
            resolved.generations.get(name),
        )
        for name, task in resolved.tasks.items()
    }
    for name in resolved.evaluated_on:
        check_data(name, {loss: resolved.losses[loss] for loss, _ in resolved.points_of[name]}, tasks[name])
    second = _second_reference(experiment, resolved.losses, renderer)
    settings = {folder: model_settings(folder, experiment.model) for folder in filter(None, (model, second))}
    for folder, own in settings.items():
        check_ids(_all_ids(tasks, renderer), renderer.tokenizer, own, f"model in {folder}")
    dropout = dropout_rates(settings[model])
    starts = {name: start_inputs(experiment, model_hash, dropout, tasks[name]) for name in resolved.evaluated_on}
    second_hash = weights_hash(second, code=runs_code) if second else None
    cells = []
    for name, evaluated_on in resolved.evaluated_on.items():
        prompts = [e.prompt for split in tasks[name].prepared.splits.values() for e in split.examples]
        needed = KeyInputs(hash_value([prompt_text(p) for p in prompts]), lambda: draft.encoder.hash, second_hash)
        maker = CellMaker(experiment, tasks[name], starts[name], needed, evaluated_on)
        cells += [
            maker.cell(resolved.losses.get(loss), settings, seed)
            for seed in experiment.seeds
            for loss, settings in [(SFT, {}), *resolved.points_of[name]]
        ]
    plan = Plan(
        experiment,
        resolved,
        model,
        model_hash,
        renderer,
        draft.encoder,
        tasks,
        starts,
        cells,
        draft.store,
        second,
        second_hash,
        ends,
    )
    check_trunk(plan.trunk_bytes, experiment.model)
    return plan


def _all_ids(tasks: Mapping[str, PlannedTask], renderer: Renderer) -> Iterator[Sequence[int]]:
    """Yield all token ids that a model will be given, text by text."""
    yield (renderer.pad_token,)
    for planned in tasks.values():
        for split in planned.prepared.splits.values():
            for sequence in split.sequences:
                yield sequence.prompt
                yield sequence.completion
        for questions in planned.prepared.questions.values():
            yield from questions.ids


def _second_reference(experiment: ExperimentConfig, losses: Mapping[str, Loss], renderer: Renderer) -> Path | None:
    """Return the folder of the second reference; None if no loss needs one.

    Raises `UserError` if none is named, or if its tokenizer is not the model's.
    """
    wanting = [loss.name for loss in losses.values() if "second_reference" in loss.needs]
    if not wanting:
        return None
    name = experiment.second_reference
    if not name:
        raise UserError(f"loss {wanting[0]!r} needs a second reference; name a model in 'second_reference'")
    folder = model_folder(name, None, code=experiment.model.trust_remote_code)
    check_folder(folder, only_read(experiment.model))
    if load_tokenizer(folder, experiment.model).get_vocab() != renderer.tokenizer.get_vocab():
        raise UserError(f"second_reference {name}: its tokenizer is not that of {experiment.model.name}")
    return folder
