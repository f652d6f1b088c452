"""Training one cell: a policy from the SFT start by one loss, with its dev metrics along the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from harness.config import TrainConfig
from harness.store import write_json, write_jsonl
from harness.training.batches import EffectiveBatch, effective_batches
from harness.training.data import Example
from harness.training.loop import optimise
from harness.training.objective import PreferenceObjective
from harness.training.policy import Policy
from harness.training.precompute import BatchSource, TokenLogProbs
from losses import Loss


@dataclass(frozen=True)
class Split:
    """Examples (`paired` if each has both completions) with their token data, reference log-probs and (where a loss needs them) prompt embeddings."""

    examples: Sequence[Example]
    paired: bool
    batches: BatchSource
    reference: TokenLogProbs
    embeddings: np.ndarray | None

    def everything(self) -> EffectiveBatch:
        """Return all examples as one batch, in order."""
        chosen = [i for i, e in enumerate(self.examples) if e.chosen is not None]
        rejected = [i for i, e in enumerate(self.examples) if e.rejected is not None]
        return EffectiveBatch(
            [self.examples[i].chosen for i in chosen], [self.examples[i].rejected for i in rejected], chosen, rejected
        )


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
) -> None:
    """Train `policy` in place; write its tensors, `metrics.jsonl` and `summary.json` to `folder`.

    Step 0 is checked first. Data order is a function of `seed` and the epoch, the same for every loss.
    """

    def batches_of(split: Split, seed: int, epoch: int) -> list[EffectiveBatch]:
        return effective_batches(split.examples, batch_size=config.batch_size, data=loss.data, seed=seed, epoch=epoch)

    def objective(split: Split) -> PreferenceObjective:
        return PreferenceObjective(
            policy, loss, settings, split.batches, split.reference, split.embeddings, accelerator
        )

    plan = [batch for epoch in range(config.epochs) for batch in batches_of(train, seed, epoch)]
    training, development = objective(train), objective(dev)
    dev_batches, dev_all = batches_of(dev, 0, 0), dev.everything()
    training.check_start(plan[0])
    log: list[dict] = []

    def evaluate(step: int) -> dict:
        row = {"split": "dev", "step": step, **development.evaluate(dev_batches, dev_all, paired=dev.paired)}
        log.append(row)
        return row

    def after_step(step: int, metrics: dict) -> None:
        log.append({"split": "train", "step": step, **metrics, "tokens": tokens_in(plan[step - 1])})
        if config.eval_every and step % config.eval_every == 0 and step < len(plan):
            evaluate(step)
        progress(step, len(plan))

    def tokens_in(batch: EffectiveBatch) -> int:
        return sum(len(train.batches.sequences[i]) for i in batch.chosen + batch.rejected)

    evaluate(0)
    optimise(policy, plan, training.backward, config, accelerator, after_step)
    last = evaluate(len(plan))
    policy.save(folder)
    write_jsonl(folder / "metrics.jsonl", log)
    steps = [row for row in log if row["split"] == "train"]
    summary = {
        "steps": len(plan),
        "examples": sum(len(b.chosen) + len(b.rejected) for b in plan),
        "tokens": sum(row["tokens"] for row in steps),
        "forward_passes": training.sequences_forwarded,
        "seconds": round(sum(row["seconds"] for row in steps), 3),
        "dev": last,
    }
    write_json(folder / "summary.json", summary)
