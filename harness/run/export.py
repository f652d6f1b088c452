"""Exports the policy of a cell to a folder of its own, with a model card."""

from __future__ import annotations

import os
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path

import yaml

from harness.backbones.language_model.export import TrainedPolicy, checkpoint_dtype, export_adapter, export_model
from harness.backbones.language_model.from_scratch import MODEL
from harness.backbones.language_model.policy import TENSORS
from harness.core.assets import ASSETS, model_folder, weights_hash
from harness.core.config import LoraConfig, ModelConfig, SampleConfig
from harness.core.errors import UserError
from harness.core.from_json import from_json
from harness.core.record_files import REMEDY, check_key
from harness.core.records import SFT, TRAIN
from harness.core.store import Artifact, Store, write_text
from harness.reporting.cell_files import CellFiles
from harness.reporting.model_card import CARD, EXPERIMENT, Exported, model_card
from harness.training.preference import kept_folder


@dataclass(frozen=True)
class ExportOptions:
    """How a cell is exported.

    - `at`: export the policy kept after this share of its training; None: the final policy.
    - `adapter`: write a peft adapter instead of a model.
    - `dtype`: the dtype of the weights, "" for that of the base model.
    - `model`: the folder of the base model, "" for where the experiment had it.
    """

    at: float | None = None
    adapter: bool = False
    dtype: str = ""
    model: str = ""


def export_cell(cell: CellFiles, into: Path, options: ExportOptions, command: str) -> Exported:
    """Write the policy of a cell to the folder `into`, with the experiment's file and a card; return what was written.

    An empty folder that is there is filled. Nothing incomplete is left in `into`. Raises `UserError` if it is not empty
    or cannot be written, if the cell is not trained, if its tensors are damaged, or if its base model is missing or is
    another one.
    """
    for name, content in {"plan.json": cell.experiment.plan, "manifest.json": cell.experiment.manifest}.items():
        if not content:
            raise UserError(f"{cell.experiment.folder} has no {name}; run the experiment again")
    decoding = _decoding(cell)
    with _folder_for(into) as building:
        trained = trained_policy(cell, options)
        if options.adapter:
            base = _base_name(trained)
            kind, difference = "adapter", export_adapter(trained, building, decoding, base)
        else:
            dtype = options.dtype or checkpoint_dtype(trained.model)
            kind, difference = dtype, export_model(trained, building, decoding, dtype)
        size = sum(file.stat().st_size for file in building.glob("*.safetensors"))
        computed = trained.config.dtype
        exported = Exported(kind, _base_name(trained), options.at, difference, size, command, computed)
        config = cell.experiment.manifest["config"]
        write_text(building / EXPERIMENT, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        write_text(building / CARD, model_card(cell, exported))
    return exported


@contextmanager
def _folder_for(into: Path) -> Iterator[Path]:
    """Yield a folder whose contents are moved to `into` at the end, unless there was an error.

    Raises `UserError` at once if `into` is not an empty folder and no folder can be made there.
    """
    target = Path(os.path.realpath(into))
    building = None
    try:
        there = os.path.lexists(target)
        beside = target if there else target.parent
        left = list(beside.glob(f".{escape(target.name)}.tmp-*"))
        if there and (not target.is_dir() or set(target.iterdir()) - set(left)):
            raise UserError(f"--into {into}: it is not empty, and nothing is overwritten; name another folder")
        for path in left:
            warnings.warn(f"{path} was left by an export that was killed; delete it", stacklevel=4)
        building = beside / f".{target.name}.tmp-{uuid.uuid4().hex[:8]}"
        building.mkdir(parents=True)
        yield building
        if there:  # it may be somebody's working folder, so it is not replaced
            for file in list(building.iterdir()):
                file.rename(target / file.name)
        else:
            building.rename(target)
    except OSError as error:
        raise UserError(f"--into {into}: cannot be written: {error}") from None
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)


def trained_policy(cell: CellFiles, options: ExportOptions) -> TrainedPolicy:
    """Return the parts of a cell's policy, each checked against the hash recorded when it was written."""
    train = _undamaged(cell.folder / TRAIN)
    if train is None:
        why = "".join(f": {failure.where}: {failure.reason}" for failure in cell.failures[:1])
        raise UserError(f"cell {cell.key} ({cell.label}) is not trained{why}; run {cell.experiment.name} first")
    check_key(train.path, train.manifest, cell.key)
    start = train.manifest["inputs"]["start"]
    sft = _undamaged(Store(cell.experiment.store).path(SFT, start))
    if sft is None:
        raise UserError(f"the SFT policy of cell {cell.key} is no longer in {cell.experiment.store}; run it again")
    tensors = [_tensors(sft, Path(), "")]
    if sft.manifest["files"][TENSORS] != cell.start.get(TENSORS):
        raise UserError(
            f"{sft.path}: this SFT policy was trained after cell {cell.key}, which started from another one"
        )
    if cell.loss != SFT or options.at is not None:
        tensors.append(_tensors(train, kept_folder(Path(), options.at), cell.key))
    config = _model_config(cell, start)
    return TrainedPolicy(_base_model(cell, config, start["model"], options.model), config, tensors)


def _decoding(cell: CellFiles) -> SampleConfig:
    try:
        return from_json(SampleConfig, cell.experiment.plan.decoding)
    except ValueError as error:
        raise UserError(f"{cell.experiment.folder / 'plan.json'}: field 'decoding': {error}; {REMEDY}") from None


def _undamaged(path: Path) -> Artifact | None:
    """Return the artifact at `path`, None if there is none; raises `UserError` if it is damaged."""
    artifact = Artifact(path)
    if not path.is_dir():
        return None
    if artifact.damage:
        raise UserError(f"{path} is damaged: {artifact.damage}; {REMEDY}")
    return artifact


def _tensors(artifact: Artifact, within: Path, key: str) -> Path:
    """Return the folder of trained tensors `within` an artifact; raises `UserError` if they were not kept there."""
    files = artifact.manifest["files"]
    if str(within / TENSORS) not in files:
        kept = sorted(name.partition("/")[0].removeprefix("at-") for name in files if name.startswith("at-"))
        raise UserError(f"--at: cell {key} was kept after these shares of its training: {', '.join(kept) or 'none'}")
    return artifact.path / within


def _model_config(cell: CellFiles, start: Mapping) -> ModelConfig:
    """Return how the cell's model was loaded and trained: names from the last run, all else from the cell's key."""
    model = cell.experiment.manifest["config"]["model"]
    tune, tuning = start["tune"]
    lora = {"lora": LoraConfig(**tuning)} if tune == "lora" else {}
    layers = tuning if tune == "last_layers" else {}
    names = {name: model[name] for name in ("name", "revision", "from_scratch", "trust_remote_code")}
    return ModelConfig(**names, dtype=start["dtype"], tune=tune, **lora, **layers)


def _base_model(cell: CellFiles, config: ModelConfig, content: str, elsewhere: str) -> Path:
    """Return the folder of the model with the hash `content`: the user's, one in the store, or the named model's."""
    if config.from_scratch and not elsewhere:
        for folder in sorted(cell.experiment.store.glob(f"pretrain/*/{MODEL}")):
            if weights_hash(folder) == content:
                return folder
        raise UserError(
            f"the model from scratch that cell {cell.key} starts from is no longer in {cell.experiment.store}; "
            "give it with --model FOLDER"
        )
    revision = None if elsewhere else config.revision
    folder = model_folder(elsewhere or config.name, revision, code=config.trust_remote_code)
    if (present := weights_hash(folder, code=config.trust_remote_code)) != content:
        raise UserError(
            f"the model {elsewhere or config.name} in {folder} is not the one that cell {cell.key} starts from "
            f"(content {present[:12]}, not {content[:12]}); give that one with --model FOLDER, or run the experiment "
            "again if an earlier version of the harness trained it"
        )
    return folder


def _base_name(trained: TrainedPolicy) -> str:
    """Return the name by which others know the base model: its hub id, or else its folder."""
    name = trained.config.name
    local = trained.config.from_scratch or name in ASSETS or Path(name).is_dir()
    return str(trained.model.resolve()) if local else name
