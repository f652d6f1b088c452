"""Supervised fine-tuning on the chosen completions, which gives the start and the reference of every loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness.backbones.language_model.policy import LanguageModel
from harness.backbones.language_model.scoring import BatchSource
from harness.core.config import SftConfig
from harness.core.store import write_json, write_jsonl
from harness.training.base import Job
from harness.training.batch import Epochs, sft_batches
from harness.training.loop import optimise
from harness.training.optimizer import Backward
from harness.training.sharding import equal_passes


def train_sft(
    policy: LanguageModel, completions: Sequence[int], source: BatchSource, config: SftConfig, job: Job
) -> None:
    """Minimise the mean negative log-prob per completion token; write tensors, metrics and summary.

    `completions` are the indices in the source to train on; a forward pass fits the source's token budget.
    """
    accelerator = job.accelerator
    plan = Epochs(
        config.epochs,
        lambda epoch: sft_batches(completions, batch_size=config.batch_size, seed=config.seed, epoch=epoch),
    )
    totals = {"tokens": 0, "forward_passes": 0}

    def backward(rows: list[int], back: Backward) -> dict:
        policy.train()
        tokens = int(source.lengths(rows).sum())
        total = torch.zeros((), device=policy.device)
        mine = sorted(rows, key=lambda i: len(source.sequences[i]))
        mine = mine[accelerator.process_index :: accelerator.num_processes]
        passes = equal_passes(source.passes(mine, [[k] for k in range(len(mine))]), policy, accelerator)
        for number, part in enumerate(passes, start=1):
            logps = policy(source.batch([mine[k] for k in part] or rows[:1], policy))
            loss = -logps.sum() / tokens * bool(part)
            back(loss, number == len(passes))
            total += loss.detach()
        totals["tokens"] += sum(len(source.sequences[i]) for i in rows)
        totals["forward_passes"] += len(rows)
        return {"loss": accelerator.reduce(total, "sum").item()}

    optimise(policy, plan, backward, config, job, seed=config.seed, kept={"totals": totals})
    policy.save(job.folder, write=accelerator.is_main_process)
    write_jsonl(job.folder / "metrics.jsonl", job.rows)
    seconds = round(sum(r["seconds"] for r in job.rows), 3)
    examples = totals["forward_passes"]  # each is run once
    write_json(job.folder / "summary.json", {"steps": len(plan), "examples": examples, **totals, "seconds": seconds})
