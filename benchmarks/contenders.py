"""The ways to train one epoch of DPO that are compared, all with the same setting."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import plain
import torch
from accelerate import Accelerator
from setting import BETA, Run, Setting, Watch

from harness.backbones.language_model.policy import load_policy
from harness.backbones.language_model.scoring import BatchSource, reference_logprobs
from harness.core.store import Store
from harness.training.base import Job
from harness.training.forward import Training
from harness.training.loop import optimise
from harness.training.objective import PreferenceObjective
from harness.training.supply import Column, Supply
from losses import get_loss


def nothing(*_: object) -> None:
    """A callback that does nothing."""


def ours(setting: Setting, *, shared_prompt: bool = True, loss: str = "dpo", settings: Mapping | None = None) -> Run:
    """Run the harness, through the functions that make up a cell's training."""
    accelerator = Accelerator(cpu=setting.device.type == "cpu")
    source = BatchSource(setting.sequences, setting.pad_token, setting.train.micro_batch_tokens, shared_prompt)
    policy = load_policy(setting.folder, setting.model).to(setting.device)
    store = Path(tempfile.mkdtemp(dir=setting.scratch))

    watch = Watch(setting.device)
    reference = reference_logprobs(Store(store), lambda: policy, "random", setting.model.dtype, source, nothing)
    prepared, _ = watch.read()
    shutil.rmtree(store)

    watch = Watch(setting.device)
    columns = {} if setting.embeddings is None else {"prompt_embeddings": Column.of_prompts(setting.embeddings)}
    training, job = Training(policy, accelerator), Job(accelerator, setting.scratch)
    supply = Supply(source, reference, columns)
    objective = PreferenceObjective(training, get_loss(loss), settings or {"beta": BETA}, supply)
    optimise(policy, setting.batches, objective.backward, setting.train, job, seed=0)
    return Run(*watch.read(), prepared, [row["loss"] for row in job.rows])


def trl(setting: Setting, **options: Any) -> Run:
    """Run TRL's DPOTrainer with its defaults, except where it would compute something else: see README.md."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
    from transformers.utils import logging
    from trl import DPOConfig, DPOTrainer

    class OnTokens(DPOTrainer):
        """The same trainer on the token ids that all contenders get; TRL would tokenise across the prompt's end."""

        def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
            return dataset

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    rows = [
        {"prompt_ids": list(w.prompt), "chosen_ids": list(w.completion), "rejected_ids": list(r.completion)}
        for w, r in setting.pairs()
    ]
    models = {"model": AutoModelForCausalLM.from_pretrained(setting.folder, dtype=torch.float32)}
    if not options.get("precompute_ref_log_probs"):
        models["ref_model"] = AutoModelForCausalLM.from_pretrained(setting.folder, dtype=torch.float32)
    config = DPOConfig(
        str(setting.scratch / "trl"),
        per_device_train_batch_size=setting.micro_pairs,
        gradient_accumulation_steps=setting.train.batch_size // setting.micro_pairs,
        num_train_epochs=1,
        learning_rate=setting.train.lr,
        optim="adamw_torch",
        lr_scheduler_type="constant",
        max_grad_norm=setting.train.clip,
        train_sampling_strategy="sequential",
        bf16=setting.model.dtype == "bfloat16",
        use_cpu=setting.device.type == "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **{"beta": BETA, **options},
    )
    watch = Watch(setting.device)
    trainer = OnTokens(
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(setting.folder),
        **models,
    )
    prepared, _ = watch.read()
    trainer.remove_callback(PrinterCallback)
    watch = Watch(setting.device)
    trainer.train()
    seconds = watch.read()
    return Run(*seconds, prepared, [row["loss"] for row in trainer.state.log_history if "loss" in row])


CONTENDERS: dict[str, Callable[[Setting], Run]] = {
    "trl_default": trl,
    "trl_precomputed": lambda setting: trl(setting, precompute_ref_log_probs=True),
    "plain": plain.train,
    "ours": lambda setting: ours(setting, shared_prompt=False),
    "ours_shared_prompt": ours,
}
FASTEST = {  # what TRL's documentation recommends for speed if memory allows: no activation checkpointing
    "trl_fastest": lambda setting: trl(setting, precompute_ref_log_probs=True, gradient_checkpointing=False)
}
