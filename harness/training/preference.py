"""Training one cell: a policy from the SFT start by one loss, with its dev metrics along the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from accelerate import Accelerator

from harness.backbones.language_model.policy import Policy
from harness.core.config import TrainConfig
from harness.core.record_files import write_record
from harness.core.records import DevMetrics, StepMetrics, TrainMetrics, TrainSummary
from harness.core.store import write_jsonl
from harness.training.batch import EffectiveBatch, effective_batches
from harness.training.checkpoint import Checkpoints
from harness.training.loop import optimise
from harness.training.objective import PreferenceObjective
from harness.training.supply import Split
from losses import Loss


def kept_folder(trained: Path, share: float | None) -> Path:
    """Return where training keeps the policy after a share of its steps (`keep_at`); None stands for its end."""
    return trained if share is None else trained / f"at-{share:g}"


def train_preference(
    policy: Policy,
    loss: Loss,
    settings: Mapping[str, object],
    train: Split,
    dev: Split,
    config: TrainConfig,
    seed: int,
    accelerator: Accelerator,
    folder: Path,
    progress: Callable[[int, int], None],
    checkpoints: Checkpoints | None = None,
) -> None:
    """Train `policy` in place; write its tensors, `metrics.jsonl` and `summary.json` to `folder`.

    Step 0 is checked first, also where the run goes on from one of its `checkpoints`. Data order is a function of
    `seed` and the epoch, the same for every loss. What `config.keep_at` asks for goes into `kept_folder`s.
    """

    def batches_of(split: Split, seed: int, epoch: int) -> list[EffectiveBatch]:
        return effective_batches(split.examples, batch_size=config.batch_size, data=loss.data, seed=seed, epoch=epoch)

    plan = [batch for epoch in range(config.epochs) for batch in batches_of(train, seed, epoch)]
    dev_batches, dev_all = batches_of(dev, 0, 0), dev.everything()
    training = PreferenceObjective(policy, loss, settings, train.supply(loss, plan), accelerator)
    development = replace(training, supply=dev.supply(loss, dev_batches))  # with what training keeps from step to step
    training.check_start(plan[0])
    log: list[dict] = []
    kept_in = checkpoints.folder if checkpoints else folder  # what was kept before a kill is there after it

    def evaluate(step: int) -> DevMetrics:
        metrics = DevMetrics("dev", step, **development.evaluate(dev_batches, dev_all, paired=dev.paired))
        log.append(asdict(metrics))
        return metrics

    def after_step(step: int, metrics: dict) -> None:
        log.append(asdict(TrainMetrics("train", step, **metrics, tokens=tokens_in(plan[step - 1]))))
        for share in config.keep_at:
            if step == max(1, round(share * len(plan))):
                policy.save(kept_folder(kept_in, share), write=accelerator.is_main_process)
        if config.eval_every and step % config.eval_every == 0 and step < len(plan):
            evaluate(step)
        progress(step, len(plan))

    def tokens_in(batch: EffectiveBatch) -> int:
        return sum(len(train.batches.sequences[i]) for i in batch.rows)

    evaluate(0)
    kept = {"log": log, "objective": training.kept}
    optimise(policy, plan, training.backward, config, accelerator, after_step, checkpoints, kept)
    last = evaluate(len(plan))
    policy.save(folder, write=accelerator.is_main_process)
    if checkpoints and accelerator.is_main_process:
        for share in config.keep_at:
            kept_folder(kept_in, share).rename(kept_folder(folder, share))
    write_jsonl(folder / StepMetrics.FILE, log)
    steps = [row for row in log if row["split"] == "train"]
    summary = TrainSummary(
        steps=len(plan),
        examples=sum(len(b.rows) for b in plan),
        tokens=sum(row["tokens"] for row in steps),
        forward_passes=training.sequences_forwarded,
        seconds=round(sum(row["seconds"] for row in steps), 3),
        dev=last,
    )
    write_record(folder, summary)
