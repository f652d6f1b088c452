"""A reward model as the judge: any sequence classifier with one output, run in this process.

It scores both responses, and the preference is the logistic function of the difference, as in the training of such
models (Bradley-Terry). It is independent of the order. Scores are cached by content, so a task's baselines are scored
once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.errors import UserError
from harness.core.hashing import hash_value
from harness.core.prompt import Prompt, readable_prompt
from harness.core.records import Agreement, Judgement
from harness.core.store import read_json, write_json
from harness.evaluation.agreement import measure_agreement
from harness.evaluation.base import Comparison, JudgeContext, register_judge
from harness.evaluation.judges.local import LocalModel, LocalOptions, check_local

if TYPE_CHECKING:
    import torch

KIND, FILE = "reward-scores", "scores.json"
FORMAT = 2  # incremented when the tokens of a text change


@register_judge("reward_model", options=LocalOptions, check=check_local)
def make(options: LocalOptions, context: JudgeContext) -> RewardModelJudge:
    """Return the judge. Its weights are loaded when the first text is scored.

    Raises `UserError` for a model whose number of outputs is not one.
    """
    judge = RewardModelJudge(options, context)
    outputs = judge.model.settings.num_labels
    if outputs != 1:
        raise UserError(f"judge reward_model: {options.model} has {outputs} outputs; a reward model has one")
    return judge


class RewardModelJudge:
    """See the module. `agreement` is measured on first use."""

    def __init__(self, options: LocalOptions, context: JudgeContext):
        self.options = options
        self.context = context
        self.model = LocalModel(options, "AutoModelForSequenceClassification")
        self.id = f"reward_model:{options.model}@{self.model.hash[:8]}"

    @cached_property
    def agreement(self) -> Agreement | None:
        """The accuracy on held-out labelled pairs; None if there are none."""
        pairs = [pair for pair in self.context.held_out if pair.paired][: self.options.agreement_pairs]
        return measure_agreement(self, pairs, self.context.labels)

    def judge(self, comparisons: Sequence[Comparison], progress: Callable[[int], None]) -> list[Judgement]:
        """Return one judgement per comparison, in order."""
        prompts = [comparison.prompt for comparison in comparisons]
        policy = self.scores(prompts, [comparison.response for comparison in comparisons])
        baseline = self.scores(prompts, [comparison.baseline for comparison in comparisons])
        progress(len(comparisons))
        return [
            by_scores(comparison.id, *scores) for comparison, *scores in zip(comparisons, policy, baseline, strict=True)
        ]

    def scores(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Return the reward of each response; cached in the store for the same list of texts."""
        texts = [
            [[[message.role, message.content] for message in prompt], response]
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        inputs = {
            "format": FORMAT,
            "model": self.model.hash,
            "dtype": self.options.dtype,
            "max_tokens": self.options.max_tokens,
            "texts": hash_value(texts),
        }

        def build(folder: Path) -> None:
            encoded = [self._encoded(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
            write_json(folder / FILE, self.model.run(encoded, self._read))

        return read_json(self.context.store.artifact(KIND, inputs, build).path / FILE)

    def _read(self, logits: torch.Tensor, last: torch.Tensor) -> list[float]:
        return logits[:, 0].float().tolist()

    def _encoded(self, prompt: Prompt, response: str) -> dict[str, list[int]]:
        """Return the encoded dialogue with the response, by the chat template, or without one as a pair of texts."""
        from harness.core.render import harmless

        tokenizer, control, limit = self.model.tokenizer, self.model.control, self.options.max_tokens
        if not tokenizer.chat_template:
            tokenizer.truncation_side = "left"  # the response answers the end of the dialogue
            texts = (harmless(readable_prompt(prompt), control), harmless(response, control))
            return dict(tokenizer(*texts, truncation="only_first", max_length=limit))
        turns = [{"role": m.role, "content": harmless(m.content, control)} for m in prompt]
        turns.append({"role": "assistant", "content": harmless(response, control)})
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) > limit:
            try:
                renderer = self.model.renderer
                answer, _ = renderer.completion(response, limit=limit // 2)
                ids = [*renderer.prompt(prompt, limit=limit - len(answer), keep="end").ids, *answer]
            except UserError:  # a template by which no policy could be trained
                ids = ids[-limit:]
        return {"input_ids": ids}


def by_scores(id: str, policy: float, baseline: float) -> Judgement:
    """Return the judgement from two scores on a log-odds scale."""
    difference = policy - baseline
    if difference == 0:
        return Judgement(id, "tie", 0.5)
    if not math.isfinite(difference):
        return Judgement(id, "failed", None, detail=f"scores {policy} and {baseline} do not compare")
    # Computed from exp(-|difference|), which cannot overflow.
    smaller = math.exp(-abs(difference)) / (1 + math.exp(-abs(difference)))
    return Judgement(id, "ok", smaller if difference < 0 else 1 - smaller)
