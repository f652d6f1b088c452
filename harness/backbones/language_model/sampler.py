"""A sampler of completions from a policy: its engine, decoding settings, seed and stop tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.backbones.language_model.policy import LanguageModel
from harness.backbones.language_model.sampling import Completion, sample
from harness.backbones.language_model.vllm import sample_with_vllm
from harness.core.config import SampleConfig
from harness.core.render import Renderer
from harness.training.base import Progress

ENGINES = {"hf": sample, "vllm": sample_with_vllm}


@dataclass(frozen=True)
class Sampler:
    """Draws completions; `renderer` provides the stop tokens and decodes ids."""

    decoding: SampleConfig
    seed: int
    renderer: Renderer

    def __call__(
        self, policy: LanguageModel, prompts: Sequence[Sequence[int]], names: Sequence[str], progress: Progress
    ) -> list[Completion]:
        """Return one completion per prompt of token ids; its noise is determined by its name."""
        with policy.autocast():
            return ENGINES[self.decoding.engine](
                policy.model,
                prompts,
                names,
                decoding=self.decoding,
                seed=self.seed,
                stop_tokens=self.renderer.stop_tokens,
                pad_token=self.renderer.pad_token,
                progress=progress,
            )
