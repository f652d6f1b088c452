"""A sampler of completions from a policy: its engine and how it draws, and the ends that a model names itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.backbones.language_model.policy import LanguageModel
from harness.backbones.language_model.sampling import Completion, Drawing, sample
from harness.backbones.language_model.vllm import sample_with_vllm
from harness.core.errors import UserError, one_line
from harness.core.render import Renderer
from harness.core.store import read_json
from harness.training.base import Progress

GENERATION = "generation_config.json"
ENGINES = {"hf": sample, "vllm": sample_with_vllm}


@dataclass(frozen=True)
class Sampler:
    """Draws completions; `renderer` decodes their ids."""

    drawing: Drawing
    renderer: Renderer

    def __call__(
        self, policy: LanguageModel, prompts: Sequence[Sequence[int]], names: Sequence[str], progress: Progress
    ) -> list[Completion]:
        """Return one completion per prompt of token ids; its noise is determined by its name."""
        engine = ENGINES[self.drawing.decoding.engine]
        with policy.autocast():
            return engine(policy.model, prompts, names, self.drawing, progress)


def ends_named_by(folder: Path) -> tuple[int, ...]:
    """Return the token ids that a model folder's generation_config.json names as ends of a response, sorted.

    Some models end a response in several ways; their tokenizer names one of them. Raises `UserError` for a file that
    cannot be read.
    """
    file = folder / GENERATION
    if not file.is_file():
        return ()
    try:
        ends = read_json(file).get("eos_token_id")
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise UserError(f"{file}: cannot be read: {one_line(error)}") from None
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if not all(isinstance(end, int) and not isinstance(end, bool) and end >= 0 for end in ends):
        raise UserError(f"{file}: eos_token_id must be a token id or a list of them, got {one_line(ends)[:80]}")
    return tuple(sorted(set(ends)))
