"""The command `plan`: says what an experiment will cost, before anything is computed, called or paid for."""

from __future__ import annotations

import argparse

from harness.cli.arguments import add_experiment_command
from harness.cli.sequences import SET_OFF, sequence_parts
from harness.core.terminal import Terminal
from harness.experiment.file import load_experiment

HELP = "Say what an experiment will take: cells, steps, judge calls, tokens, cost; and show a training example."
EPILOG = """example:
  python -m harness plan experiments/rpo_vs_dpo.yaml

Nothing is trained or asked, and no key is needed. The tokens of large data are kept for the run. Of a model from
scratch that is not trained yet, what depends on its tokenizer is not known. Tokens of requests are estimates (a quarter
of their bytes); answers count as long as they may be, and responses that are not sampled yet as long as
`sample.max_new_tokens` allows. Of each task, the first training example is shown as the model sees it, with the tokens
that the loss is computed on set off.
exit status: 0 planned, 2 something must be changed first"""
LONGEST = 800  # characters shown of a prompt or a completion


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    add_experiment_command(commands, "plan", run, HELP, EPILOG)


def run(options: argparse.Namespace) -> int:
    """Print the plan of an experiment."""
    from harness.experiment.draft import draft_plan
    from harness.run.cost import cost_lines, draft_lines
    from harness.run.example import first_example
    from harness.run.progress import plan_with_progress

    draft = draft_plan(load_experiment(options.experiment, options.overrides), to_run=False)
    model = draft.model
    plan = plan_with_progress(draft, model, Terminal(stderr=True)) if model else None
    console = Terminal()
    marked = not console.is_terminal
    for line in cost_lines(plan) if plan else draft_lines(draft):
        console.say(line)
    for name in plan.resolved.evaluated_on if plan else ():
        console.say("")
        console.say(f"first training example of {name}{SET_OFF[marked]}", style="bold")
        for part in sequence_parts(first_example(plan.tasks[name], plan.renderer), marked=marked, longest=LONGEST):
            console.print(part, soft_wrap=marked)
    return 0
