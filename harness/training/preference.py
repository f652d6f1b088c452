"""Training of one cell: a policy is trained from the SFT policy with one loss and evaluated on dev meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.core.config import TrainConfig
from harness.core.record_files import write_record
from harness.core.records import DevMetrics, StepMetrics, TrainSummary
from harness.core.store import write_jsonl
from harness.training.base import Job, Policy
from harness.training.batch import EffectiveBatch, Epochs, effective_batches
from harness.training.forward import Training
from harness.training.loop import optimise
from harness.training.objective import PreferenceObjective
from harness.training.supply import Split
from losses import Loss


def kept_folder(trained: Path, share: float | None) -> Path:
    """Return the folder of the policy after a fraction of the steps (`keep_at`); None means the end of training."""
    return trained if share is None else trained / f"at-{share:g}"


def train_preference(
    policy: Policy,
    loss: Loss,
    settings: Mapping[str, object],
    splits: Mapping[str, Split],
    config: TrainConfig,
    seed: int,
    job: Job,
) -> None:
    """Train `policy` in place on the split `train`; write its tensors, `metrics.jsonl` and `summary.json`.

    Step 0 is checked first, even if the run resumes from a checkpoint. The data order depends only on `seed` and the
    epoch and is the same for every loss. Policies requested by `config.keep_at` are written to `kept_folder`.
    """

    def batches_of(split: Split, seed: int, epoch: int) -> list[EffectiveBatch]:
        return effective_batches(split.examples, batch_size=config.batch_size, data=loss.data, seed=seed, epoch=epoch)

    train, dev, writes = splits["train"], splits["dev"], job.accelerator.is_main_process
    plan = Epochs(config.epochs, lambda epoch: batches_of(train, seed, epoch))
    dev_batches, dev_all = batches_of(dev, 0, 0), dev.everything()
    training = Training(policy, job.accelerator)
    objective = PreferenceObjective(training, loss, settings, train.supply(loss, plan))
    development = PreferenceObjective(training, loss, settings, dev.supply(loss, dev_batches))
    objective.check_start(plan[0])
    kept = {"training": training.kept}
    kept_in = job.checkpoints.folder if job.checkpoints else job.folder  # survives an interruption

    def evaluate(step: int) -> DevMetrics:
        values: dict[str, Any] = development.evaluate(dev_batches, dev_all, paired=dev.paired)
        metrics = DevMetrics("dev", step, **values)
        job.log(asdict(metrics))
        return metrics

    def after_step(step: int) -> None:
        for share in config.keep_at:
            if step == max(1, round(share * len(plan))):
                policy.save(kept_folder(kept_in, share), write=writes)
                if job.checkpoints and writes:
                    job.checkpoints.add_beside(kept_folder(kept_in, share))
        if config.eval_every and step % config.eval_every == 0 and step < len(plan):
            evaluate(step)

    evaluate(0)
    optimise(policy, plan, objective.backward, config, job, seed=seed, after_step=after_step, kept=kept)
    last = evaluate(len(plan))
    policy.save(job.folder, write=writes)
    if job.checkpoints and writes:
        for share in config.keep_at:  # copied: a run killed before the artifact is complete needs them again
            shutil.copytree(kept_folder(kept_in, share), kept_folder(job.folder, share))
    write_jsonl(job.folder / StepMetrics.FILE, job.rows)
    steps = [row for row in job.rows if row["split"] == "train"]
    summary = TrainSummary(
        steps=len(plan),
        examples=training.kept["examples"],
        tokens=sum(row["tokens"] for row in steps),
        forward_passes=objective.sequences_forwarded,
        seconds=round(sum(row["seconds"] for row in steps), 3),
        dev=last,
    )
    write_record(job.folder, summary)
