"""Checks of an experiment beyond names and types, made before anything is written or computed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from harness.core.config import ExperimentConfig, ModelConfig
from harness.core.errors import UserError
from harness.experiment.cells import PlannedTask
from harness.training.supply import Supplier, supplier_of
from losses import Loss


def check_lengths(experiment: ExperimentConfig, context: int | None) -> None:
    """Reject lengths beyond the model's `context` (tokens; None: unknown).

    Whether the model can be trained is checked when it is loaded, before anything is written.
    """
    for name, task in experiment.tasks.items():
        for what, length in (
            ("max_completion_tokens", task.max_completion_tokens),
            ("sample.max_new_tokens", experiment.sample.max_new_tokens),
        ):
            if context is not None and task.max_prompt_tokens + length > context:
                raise UserError(
                    f"tasks.{name}: max_prompt_tokens={task.max_prompt_tokens} and {what}={length} exceed "
                    f"the {context} tokens of context of the model; lower one of them"
                )


def check_needs(losses: Iterable[Loss], suppliers: Mapping[str, Supplier]) -> None:
    """Reject losses with a need for which the backbone has no supplier."""
    for loss in losses:
        for need in sorted(loss.needs):
            try:
                supplier_of(need, suppliers)
            except UserError as error:
                raise UserError(f"loss {loss.name!r}: {error}") from None


def check_data(name: str, losses: Mapping[str, Loss], planned: PlannedTask) -> None:
    """Reject losses that need pairs, lists or scores that their task's data lack."""
    for (split, token_split), loss in itertools.product(planned.prepared.splits.items(), losses.values()):
        paired = planned.generation.paired if planned.generation else token_split.paired
        if not paired and loss.data != "unpaired":
            wanted = "pairs" if loss.data == "paired" else "several responses to each prompt"
            raise UserError(
                f"loss {loss.name!r} needs {wanted}, and the data of task {name!r} are unpaired; "
                "use an unpaired loss such as rpo_unpaired"
            )
        made = planned.generation is not None and paired  # generated pairs have scores
        without = 0 if made else sum(not example.scores for example in token_split.examples)
        ranked = loss.data == "listwise" and without < len(token_split.examples)  # without any scores, pairs give ranks
        if without and (ranked or "scores" in loss.needs):
            raise UserError(
                f"loss {loss.name!r} needs scores, and {without} of {len(token_split.examples)} {split} examples "
                f"of task {name!r} have none; "
                "give each a score (score_chosen and score_rejected, or a list of responses)"
            )


def check_trunk(trunk_bytes: int, model: ModelConfig) -> None:
    """Reject activations of the frozen layers (`trunk_bytes`) that would exceed `model.trunk_cap_gb` on disk."""
    needed, cap = trunk_bytes / 1e9, model.trunk_cap_gb
    if needed > cap:
        raise UserError(
            f"tune: last_layers would store {needed:.3g} GB of the frozen layers' activations, and "
            f"model.trunk_cap_gb is {cap:g}; "
            "raise it, lower train_pairs or the token limits, set model.dtype=bfloat16, or use tune: lora"
        )
