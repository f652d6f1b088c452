"""Sampling with vLLM (the extra `vllm`, on a GPU), with the same token ids and decoding parameters as `sampling`.

The noise is vLLM's own, seeded by (seed, prompt id): reproducible and common to all policies, but different from that
of `harness.backbones.language_model.sampling`. The engine is therefore part of a sample's key.
"""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from harness.backbones.language_model.sampling import Completion, Drawing
from harness.core.config import ExperimentConfig
from harness.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_engine(experiment: ExperimentConfig, processes: int) -> None:
    """Raise `UserError` if the experiment requests vLLM and it cannot be used."""
    if experiment.sample.engine != "vllm":
        return
    if importlib.util.find_spec("vllm") is None:
        raise UserError("sample.engine=vllm: vllm is not installed; run pip install '.[vllm]', or use sample.engine=hf")
    if experiment.model.tune == "lora":
        raise UserError(
            "sample.engine=vllm: it cannot run one LoRA adapter on top of another, and merged into the weights they "
            "would be rounded; use sample.engine=hf with model.tune=lora"
        )
    if processes > 1:
        raise UserError(
            f"sample.engine=vllm runs in one process, not in {processes}; use sample.engine=hf, or train with it first "
            "and set the engine in a run of one process"
        )


def request_parameters(name: str, drawing: Drawing) -> dict:
    """Return the arguments of vLLM's `SamplingParams` for the prompt of that name."""
    digest = hashlib.sha256(f"{drawing.seed}:{name}".encode()).digest()
    return {
        "temperature": drawing.decoding.temperature,
        "top_p": drawing.decoding.top_p,
        "max_tokens": drawing.decoding.max_new_tokens,
        "stop_token_ids": list(drawing.stop_tokens),  # vLLM includes the stop token in the output
        "ignore_eos": True,  # only our stop tokens end a sample, as in training
        "detokenize": False,
        "seed": int.from_bytes(digest[:4], "big"),
    }


def sample_with_vllm(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    ids: Sequence[str],
    drawing: Drawing,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Completion]:
    """Return one completion per prompt, in the order of `prompts`; the arguments are those of `sampling.sample`.

    vLLM reads the weights from a folder, in the policy's compute dtype; meanwhile the model is moved to the CPU, so
    that vLLM has the GPU to itself. Nothing is padded.
    """
    from vllm import LLM, SamplingParams

    device = model.device
    autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if autocast else model.dtype
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        model.to("cpu")
        torch.cuda.empty_cache()
        engine = LLM(model=folder, skip_tokenizer_init=True, dtype=str(dtype).removeprefix("torch."))
        try:
            outputs = engine.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts],
                [SamplingParams(**request_parameters(name, drawing)) for name in ids],
                use_tqdm=False,
            )
        finally:
            del engine
            torch.cuda.empty_cache()
            model.to(device)
    progress(len(prompts), len(prompts))
    return [_as_completion(output.outputs[0].token_ids, drawing.stop_tokens) for output in outputs]


def _as_completion(token_ids: Sequence[int], stop_tokens: Sequence[int]) -> Completion:
    return Completion(tuple(token_ids), finished=bool(token_ids) and token_ids[-1] in stop_tokens)
