"""How completions are drawn from a policy, as one value: by which engine, with which decoding, noise and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.backbones.language_model.policy import Policy
from harness.backbones.language_model.sampling import Sample, sample
from harness.backbones.language_model.vllm import sample_with_vllm
from harness.core.config import SampleConfig
from harness.core.render import Renderer
from harness.training.base import Progress

ENGINES = {"hf": sample, "vllm": sample_with_vllm}


@dataclass(frozen=True)
class Sampler:
    """Draws completions: `renderer` knows the tokens that end one, and turns ids into text."""

    decoding: SampleConfig
    seed: int
    renderer: Renderer

    def __call__(
        self, policy: Policy, prompts: Sequence[Sequence[int]], names: Sequence[str], progress: Progress
    ) -> list[Sample]:
        """Return one completion per prompt, given as ids; its noise is that of its name."""
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
