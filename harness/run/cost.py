"""What an experiment will cost in steps, judge calls and money, before anything is computed or paid for."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.core.records import SAMPLE, TRAIN, settings_text, stage_folder
from harness.core.store import find_artifact
from harness.evaluation.base import Comparison, Forecast
from harness.experiment.cells import Cell
from harness.experiment.draft import Draft
from harness.experiment.plan import Plan
from harness.experiment.resolve import JudgeChoice
from harness.run.judging import comparisons_of, judge_context
from harness.run.notes import data_notes, template_lines

CHARACTERS = 4  # per token of English text


def cost_lines(plan: Plan) -> list[str]:
    """Return the plan as readable lines: cells, the size of their training, and the cost of judging."""
    trained = [find_artifact(plan.folder(cell) / TRAIN, cell.inputs) is not None for cell in plan.cells]
    lines = [
        f"experiment {plan.experiment.name}: {len(plan.cells)} cells, {sum(trained)} of them trained",
        f"  losses: {_losses(plan.resolved.points)}; seeds {', '.join(map(str, plan.experiment.seeds))}",
    ]
    lines += template_lines(plan.renderer.notes)
    for name in plan.resolved.evaluated_on:
        cells = [cell for cell in plan.cells if cell.task == name]
        lines.append(f"  {name}: {len(cells)} cells; {_training(plan, name)}")
    for task in plan.tasks:
        cells = [cell for cell in plan.cells if task in cell.evaluated_on]
        sampled = [find_artifact(plan.folder(cell) / stage_folder(SAMPLE, task)) for cell in cells]
        questions = plan.tasks[task].prepared.questions["test"]
        done = sum(samples is not None for samples in sampled)
        asked = _asked(len(questions), plan.experiment.tasks[task].test_prompts)
        lines.append(
            f"  {task}: {len(questions)} responses{asked} from each of {len(cells)} policies, {done} of them sampled"
        )
        if notes := data_notes(plan.tasks[task].prepared.counts):
            lines.append(f"    {notes}")
        for judge in plan.resolved.judges_of(task):
            lines.append(
                f"    judge {' '.join(filter(None, (judge.name, judge.kind.name)))}: {_judging(plan, task, judge)}"
            )
    return lines


def draft_lines(draft: Draft) -> list[str]:
    """Return readable lines on an experiment whose model is not trained yet: what is known, and what is not."""
    experiment, resolved = draft.experiment, draft.resolved
    scratch = experiment.model.from_scratch
    count = {name: len(experiment.seeds) * (1 + len(points)) for name, points in resolved.points_of.items()}
    lines = [
        f"experiment {experiment.name}: {sum(count.values())} cells",
        f"  model from scratch ({scratch.layers} layers of {scratch.hidden}): "
        "not trained yet, the first stage of a run",
    ]
    for name, data in draft.data.items():
        parts = [f"{count[name]} cells; {len(data.train)} rows to train on" if name in count else "trains nothing"]
        lines.append(f"  {name}: {', '.join([*parts, f'{len(data.test)} test prompts'])}, before any limit")
        judges = (" ".join(filter(None, (judge.name, judge.kind.name))) for judge in resolved.judges_of(name))
        lines += [f"    judge {judge}" for judge in judges]
    unknown = "tokens, rows that are too long, optimiser steps, what is done already, what judging takes"
    return [*lines, f"  known only once the model is there, whose tokenizer decides it: {unknown}"]


def _training(plan: Plan, task: str) -> str:
    train = plan.tasks[task].prepared.splits["train"]
    config = plan.experiment.train
    steps = config.epochs * math.ceil(len(train.examples) / config.batch_size)
    tokens = sum(len(sequence.prompt) + len(sequence.completion) for sequence in train.sequences)
    asked = _asked(len(train.examples), plan.experiment.tasks[task].train_pairs if train.paired else None)
    return (
        f"{len(train.examples)} examples{asked}, {tokens:,} tokens an epoch, {steps} optimiser steps each "
        "(the SFT row: none)"
    )


def _losses(points: Sequence[tuple[str, dict]]) -> str:
    """Name every loss, with its settings if there is one point of it, or their number."""
    settings: dict[str, list[dict]] = {}
    for loss, point in points:
        settings.setdefault(loss, []).append(point)
    return ", ".join(
        f"{loss} ({settings_text(of[0]) if len(of) == 1 else f'{len(of)} settings'})" for loss, of in settings.items()
    )


def _asked(there: int, limit: int | None) -> str:
    """Say how many an experiment asks for where its data have fewer."""
    return f" (of the {limit:,} asked for)" if limit is not None and there < limit else ""


def _judging(plan: Plan, task: str, judge: JudgeChoice) -> str:
    """Return what one judge of a task will cost, over all policies evaluated on that task."""
    if judge.kind.forecast is None:
        return "runs here, no calls"
    forecast = sum(
        (_cell(plan, cell, task, judge) for cell in plan.cells if task in cell.evaluated_on), start=Forecast()
    )
    answers = (
        "answers of any length"
        if forecast.completion_tokens is None
        else f"at most {forecast.completion_tokens:,} of answers"
    )
    price = "no known price (set its price)" if forecast.usd is None else f"at most about {forecast.usd:,.2f} USD"
    if forecast.completion_tokens is None:
        price = "no limit on the price (set its max_tokens)"
    budget = getattr(judge.options, "budget_usd", None)
    return (
        f"{forecast.calls:,} calls, {forecast.kept:,} of them answered before; "
        f"about {forecast.prompt_tokens:,} tokens of requests, "
        f"{answers}; {price}" + (f", budget {budget:g} USD" if budget else "")
    )


def _cell(plan: Plan, cell: Cell, task: str, judge: JudgeChoice) -> Forecast:
    samples = find_artifact(plan.folder(cell) / stage_folder(SAMPLE, task))
    if samples:
        comparisons = comparisons_of(plan, task, "test", samples)
    else:
        response = "x" * CHARACTERS * plan.experiment.sample.max_new_tokens
        questions = plan.tasks[task].prepared.questions["test"].questions
        # The key makes these stand-ins differ between cells, as the responses will.
        comparisons = [Comparison(q.id, q.prompt, f"{cell.key}{response}", q.baseline) for q in questions]
    return judge.kind.forecast(judge.options, judge_context(plan, cell.task, task, judge.name), comparisons)
