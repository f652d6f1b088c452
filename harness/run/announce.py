"""The lines that a run prints before it begins."""

from __future__ import annotations

from collections import Counter

from harness.core.config import ExperimentConfig
from harness.core.records import SFT
from harness.experiment.plan import Plan
from harness.run.notes import data_notes, template_lines
from harness.run.worker import Worker


def announcement(plan: Plan, worker: Worker, todo: int) -> list[str]:
    """Return lines that say what the run will do; `todo` is the number of cells still to be trained."""
    experiment = plan.experiment
    losses = Counter(cell.loss for cell in plan.cells if cell.loss != SFT)
    processes = worker.accelerator.num_processes
    lines = [
        f"experiment {experiment.name}: {len(plan.cells)} cells ({len(plan.cells) - todo} already trained)",
        f"  model   {_model_name(experiment)}, training {_tuned(plan)}, {experiment.model.dtype}, "
        f"on {worker.accelerator.device}{f' x {processes}' if processes > 1 else ''}",
        f"  losses  {', '.join(losses)}, and the SFT policy as a row of its own; seeds {experiment.seeds}",
    ]
    lines += template_lines(plan.renderer.notes)
    for name, planned in plan.tasks.items():
        prepared = planned.prepared
        sizes = [f"{len(split.examples)} {kind}" for kind, split in prepared.splits.items()]
        sizes.append(f"{len(prepared.questions['test'])} test prompts against {planned.task.baseline}")
        notes = data_notes(prepared.counts)
        lines.append(f"  {name:<7} {', '.join(sizes)}" + (f" ({notes})" if notes else ""))
    if plan.trunk_bytes:
        size = f"{plan.trunk_bytes / 1e9:.2g} GB of activations, computed once for all cells"
        lines.append(f"  frozen  {size}, in {plan.store.root}")
    if todo and (reason := worker.check_model()):
        lines.append(f"  rows    every completion with a prompt of its own, not shared: {reason}")
    if todo and experiment.sample.engine == "hf" and (costs := worker.steps().costs):
        lines.append(f"  sample  {costs}: this model's cache cannot be used")
    judges = (
        f"{judge.name} ({judge.kind.name})" if judge.name else judge.kind.name
        for judge in plan.resolved.judges.values()
    )
    return [*lines, f"  judge   {', '.join(judges)}"]


def _model_name(experiment: ExperimentConfig) -> str:
    scratch = experiment.model.from_scratch
    return experiment.model.name if scratch is None else f"from scratch ({scratch.layers} layers of {scratch.hidden})"


def _tuned(plan: Plan) -> str:
    model = plan.experiment.model
    return {
        "full": "all weights",
        "lora": f"LoRA of rank {model.lora.rank}",
        "last_layers": f"the last {model.last_layers} layers",
    }[model.tune]
