"""A grid of losses and seeds in one experiment against as many single runs of TRL's DPOTrainer.

The harness runs the training stage of every cell (`harness.run.stages.train`, as `python -m harness run` does), with
the reference's log-probs and the evaluations on dev pairs. TRL's time is extrapolated from one run of each of three
losses.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from contenders import nothing, trl
from measure import alternate, median, report
from setting import Setting, Watch, checked, make_setting, shared_parser, task_config

from harness.conformance.trl import COUNTERPARTS
from harness.core.config import ExperimentConfig, SftConfig
from harness.core.records import SFT
from harness.experiment.draft import draft_plan
from harness.experiment.plan import make_plan
from harness.run.stages.sft import sft
from harness.run.stages.train import train
from harness.run.worker import Worker

LOSSES = ("dpo", "hinge", "nca", "apo_zero", "apo_down", "ipo")
GRID = {c.loss: c for c in COUNTERPARTS if c.loss in LOSSES and not c.differs}  # with TRL's options for the same loss
SEEDS = [0, 1, 2]
TRL_RUNS = ("dpo", "nca", "ipo")
DEV_PAIRS = 4


def parser() -> argparse.ArgumentParser:
    """Return the parser of this script's options."""
    return shared_parser(__doc__, pairs=64, repeats=1)


def main() -> int:
    options = checked(parser())
    with tempfile.TemporaryDirectory() as scratch:
        setting = make_setting(options, Path(scratch))
        contenders = {"ours": lambda: grid(setting, options.dataset, options.pairs)}
        contenders |= {loss: lambda loss=loss: single(setting, loss) for loss in TRL_RUNS}
        runs = alternate(contenders, options.repeats)
    cells = len(GRID) * len(SEEDS)
    clock, cpu = ({name: median([run[i] for run in repeats]) for name, repeats in runs.items()} for i in (0, 1))
    theirs, their_cpu = (cells * sum(each[loss] for loss in TRL_RUNS) / len(TRL_RUNS) for each in (clock, cpu))
    names = {"ours": f"ours, {cells} cells", **{loss: f"TRL, {loss}, one run" for loss in TRL_RUNS}}
    rows = [{"contender": label, "seconds": clock[name], "CPU s": cpu[name]} for name, label in names.items()]
    rows.append({"contender": f"TRL, {cells} runs (extrapolated)", "seconds": theirs, "CPU s": their_cpu})
    facts = {
        "grid": f"{', '.join(GRID)} x {len(SEEDS)} seeds",
        "data": (
            f"{options.dataset}, {options.pairs} pairs, {options.batch_size} a step; "
            f"ours also {DEV_PAIRS} dev pairs, twice"
        ),
        "model": (
            f"{options.scale} Llama, random weights, {options.dtype}, "
            f"on {options.device} with {options.threads} threads"
        ),
        "medians of": options.repeats,
    }
    report(
        "A grid of losses and seeds",
        facts,
        rows,
        {"ratio_grid": theirs / clock["ours"]},
        options.out,
        f"grid_{options.dataset}",
    )
    return 0


def grid(setting: Setting, dataset: str, pairs: int) -> tuple[float, float]:
    """Return the seconds, and CPU seconds, that the training stages of all cells take.

    SFT is done before and is not counted: TRL does not need it either.
    """
    with tempfile.TemporaryDirectory(dir=setting.scratch) as results:
        experiment = ExperimentConfig(
            name="grid",
            results=results,
            seeds=SEEDS,
            model=setting.model,
            tasks={dataset: task_config(dataset, pairs, dev_pairs=DEV_PAIRS)},
            losses={loss: dict(c.settings) for loss, c in GRID.items()},
            sft=SftConfig(lr=setting.train.lr, optimizer=setting.train.optimizer, batch_size=pairs),
            train=setting.train,
        )
        draft = draft_plan(experiment)
        plan = make_plan(draft, draft.model)
        worker = Worker(plan)
        worker.check_model()
        sft(worker, dataset, nothing)
        watch = Watch(setting.device)
        for cell in plan.cells:
            if cell.loss != SFT:
                train(worker, cell, nothing)
        return watch.read()


def single(setting: Setting, loss: str) -> tuple[float, float]:
    """Return the seconds, and CPU seconds, of one run of TRL: building the trainer and training."""
    watch = Watch(setting.device)
    trl(setting, **GRID[loss].options)
    return watch.read()


if __name__ == "__main__":
    raise SystemExit(main())
