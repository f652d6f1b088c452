"""Supervised fine-tuning on the chosen completions: the start and the reference of every loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from harness.backbones.language_model.policy import Policy
from harness.backbones.language_model.rows import micro_batches
from harness.backbones.language_model.scoring import BatchSource
from harness.core.config import SftConfig
from harness.core.store import write_json, write_jsonl
from harness.training.batch import sft_batches
from harness.training.checkpoint import Checkpoints
from harness.training.loop import optimise
from harness.training.sharding import equal_passes
from harness.training.update import Backward


def train_sft(
    policy: Policy,
    completions: Sequence[int],
    batches: BatchSource,
    config: SftConfig,
    accelerator: Accelerator,
    folder: Path,
    progress: Callable[[int, int], None],
    checkpoints: Checkpoints | None = None,
) -> None:
    """Minimise the mean negative log-prob per completion token; write tensors, metrics and summary to `folder`.

    `completions` are the sequence indices to train on.
    """
    plan = [
        batch
        for epoch in range(config.epochs)
        for batch in sft_batches(completions, batch_size=config.batch_size, seed=config.seed, epoch=epoch)
    ]
    log: list[dict] = []
    totals = {"tokens": 0, "forward_passes": 0}
    lengths = [len(s) for s in batches.sequences]

    def backward(rows: list[int], back: Backward) -> dict:
        policy.train()
        tokens = sum(len(batches.sequences[i].completion) for i in rows)
        total = torch.zeros((), device=policy.device)
        mine = sorted(rows, key=lambda i: lengths[i])[accelerator.process_index :: accelerator.num_processes]
        groups = [[i] for i in mine]
        passes = micro_batches(groups, batches.sequences, config.micro_batch_tokens, shared=batches.shared)
        passes = equal_passes(passes, policy, accelerator)
        for number, part in enumerate(passes, start=1):
            logps = policy(batches.batch(part or rows[:1], policy))
            loss = -logps.sum() / tokens * bool(part)
            back(loss, number == len(passes))
            total += loss.detach()
        totals["tokens"] += sum(lengths[i] for i in rows)
        totals["forward_passes"] += len(rows)
        return {"loss": accelerator.reduce(total, "sum").item()}

    def after_step(step: int, metrics: dict) -> None:
        log.append({"split": "train", "step": step, **metrics})
        progress(step, len(plan))

    kept = {"log": log, "totals": totals}
    optimise(policy, plan, backward, config, accelerator, after_step, checkpoints, kept)
    policy.save(folder, write=accelerator.is_main_process)
    write_jsonl(folder / "metrics.jsonl", log)
    write_json(
        folder / "summary.json",
        {
            "steps": len(plan),
            "examples": sum(map(len, plan)),
            **totals,
            "seconds": round(sum(r["seconds"] for r in log), 3),
        },
    )
