"""The command `plan`: says what an experiment will cost, before anything is computed, called or paid for."""

from __future__ import annotations

import argparse

from harness.cli.arguments import add_experiment_command
from harness.core.terminal import Terminal
from harness.experiment.file import load_experiment

HELP = "Say what an experiment will take: cells, steps, judge calls, tokens, cost."
EPILOG = """example:
  python -m harness plan experiments/rpo_vs_dpo.yaml

Nothing is trained or asked, and no key is needed. Of a model from scratch that is not trained yet, what depends on its
tokenizer is not known. Tokens of requests are estimates (a quarter of their bytes); answers count as long as they may
be, and responses that are not sampled yet as long as `sample.max_new_tokens` allows.
exit status: 0 planned, 2 something must be changed first"""


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    add_experiment_command(commands, "plan", run, HELP, EPILOG)


def run(options: argparse.Namespace) -> int:
    """Print the plan of an experiment."""
    from harness.experiment.draft import draft_plan
    from harness.experiment.plan import make_plan
    from harness.run.cost import cost_lines, draft_lines

    draft = draft_plan(load_experiment(options.experiment, options.overrides), to_run=False)
    model = draft.model()
    console = Terminal()
    for line in draft_lines(draft) if model is None else cost_lines(make_plan(draft, model)):
        console.say(line)
    return 0
