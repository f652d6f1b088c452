"""The command `plan`: what an experiment will take, before anything is computed, called or paid for."""

from __future__ import annotations

import argparse
import math

EPILOG = """example:
  python -m harness plan experiments/rpo_vs_dpo.yaml

Nothing is trained or asked, and no key is needed. Tokens of requests are estimates (a quarter of their bytes); answers
count as long as they may be, and responses that are not sampled yet as long as `sample.max_new_tokens` allows."""
CHARACTERS = 4  # of English text in a token


def add_command(experiment_command) -> None:
    """Add the command to those that take an experiment."""
    experiment_command(
        "plan", run, "Say what an experiment will take: cells, steps, judge calls, tokens, cost.", EPILOG
    )


def run(options: argparse.Namespace) -> int:
    """Print the plan of an experiment."""
    from harness.experiment.file import load_experiment
    from harness.experiment.plan import make_plan

    plan = make_plan(load_experiment(options.experiment, options.overrides), to_run=False)
    print("\n".join(lines_of(plan)))
    return 0


def lines_of(plan) -> list[str]:
    """Return the plan in lines for a person: cells, the size of their training, and what judging takes."""
    from harness.core.store import find_artifact

    folder = plan.experiment.folder / "cells"
    trained = [find_artifact(folder / cell.key / "train", cell.inputs) is not None for cell in plan.cells]
    lines = [f"experiment {plan.experiment.name}: {len(plan.cells)} cells, {sum(trained)} of them trained"]
    for name in plan.resolved.evaluated_on:
        cells = [cell for cell in plan.cells if cell.task == name]
        lines.append(f"  {name}: {len(cells)} cells; {_training(plan, name)}")
    for task in plan.tasks:
        cells = [cell for cell in plan.cells if task in cell.evaluated_on]
        sampled = [find_artifact(folder / cell.key / f"sample-{task}") for cell in cells]
        questions = plan.tasks[task].prepared.questions
        done = sum(samples is not None for samples in sampled)
        lines.append(f"  {task}: {len(questions)} responses from each of {len(cells)} policies, {done} of them sampled")
        for judge in plan.resolved.judges_of(task):
            lines.append(
                f"    judge {' '.join(filter(None, (judge.name, judge.kind.name)))}: {_judging(plan, task, judge)}"
            )
    return lines


def _training(plan, task: str) -> str:
    train = plan.tasks[task].prepared.splits["train"]
    config = plan.experiment.train
    steps = config.epochs * math.ceil(len(train.examples) / config.batch_size)
    tokens = sum(len(sequence.prompt) + len(sequence.completion) for sequence in train.sequences)
    return (
        f"{len(train.examples)} examples, {tokens:,} tokens an epoch, {steps} optimiser steps each (the SFT row: none)"
    )


def _judging(plan, task: str, judge) -> str:
    """Say what one judge of a task will take, over all policies that are evaluated on it."""
    from harness.evaluation.base import Forecast

    if judge.kind.forecast is None:
        return "runs here, no calls"
    found = sum((_cell(plan, cell, task, judge) for cell in plan.cells if task in cell.evaluated_on), start=Forecast())
    answers = (
        "answers of any length"
        if found.completion_tokens is None
        else f"at most {found.completion_tokens:,} of answers"
    )
    price = "no known price (set judge.price)" if found.usd is None else f"at most about {found.usd:,.2f} USD"
    if found.completion_tokens is None:
        price = "no limit on the price (set judge.max_tokens)"
    budget = getattr(judge.options, "budget_usd", None)
    return (
        f"{found.calls:,} calls, {found.kept:,} of them answered before; about {found.prompt_tokens:,} tokens of requests, "
        f"{answers}; {price}" + (f", budget {budget:g} USD" if budget else "")
    )


def _cell(plan, cell, task: str, judge):
    from harness.core.store import find_artifact
    from harness.evaluation.base import Comparison
    from harness.run.judging import comparisons_of, judge_context

    samples = find_artifact(plan.experiment.folder / "cells" / cell.key / f"sample-{task}")
    if samples:
        comparisons = comparisons_of(plan, task, samples)
    else:
        response = "x" * CHARACTERS * plan.experiment.sample.max_new_tokens
        questions = plan.tasks[task].prepared.questions
        # The cell's name makes each of them another question, as its responses will be.
        comparisons = [Comparison(q.id, q.prompt, f"{cell.key}{response}", q.baseline) for q in questions]
    return judge.kind.forecast(judge.options, judge_context(plan, cell.task, task, judge.name), comparisons)
