"""A local causal language model as the judge, in this process; it answers with one token, the label.

The request comes from the template, the answer is prefilled up to the label, and the preference is the first label's
probability among the two labels. Both orders are asked, as with a remote judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.errors import UserError
from harness.core.hashing import hash_value
from harness.core.prompt import Message
from harness.core.records import Agreement, Judgement
from harness.core.store import read_json, write_json
from harness.evaluation.agreement import measure_agreement
from harness.evaluation.base import Comparison, JudgeContext, register_judge
from harness.evaluation.judges.local import LocalModel, LocalOptions, check_local
from harness.evaluation.judges.orders import both_orders, identical
from harness.evaluation.judges.template import Template, load_template

if TYPE_CHECKING:
    import torch

KIND, FILE = "pairwise-verdicts", "verdicts.json"
FORMAT = 2  # incremented when the tokens of a request change


@dataclass
class PairwiseOptions(LocalOptions):
    """The settings under `judge:` in an experiment file."""

    template: str = ""  # "": the task's own; a built-in one by name, or a file


def check(options: PairwiseOptions) -> None:
    """Raise `UserError` for invalid settings, or a missing template or model."""
    check_local(options)
    if options.template:
        load_template(options.template)


@register_judge("hf_pairwise", options=PairwiseOptions, check=check)
def make(options: PairwiseOptions, context: JudgeContext) -> PairwiseJudge:
    """Return the judge of one task. Its weights are loaded when the first comparison is asked.

    Raises `UserError` if the tokenizer cannot tell the template's labels apart.
    """
    judge = PairwiseJudge(options, load_template(options.template or context.template), context)
    judge.request_ids("")
    return judge


class PairwiseJudge:
    """See the module. `agreement` is measured on first use."""

    def __init__(self, options: PairwiseOptions, template: Template, context: JudgeContext):
        self.options = options
        self.template = template
        self.context = context
        self._model = LocalModel(options, "AutoModelForCausalLM")
        self.id = f"hf_pairwise:{options.model}@{self._model.hash[:8]}:{template.label}"

    @cached_property
    def agreement(self) -> Agreement | None:
        """The accuracy on held-out labelled pairs; None if there are none."""
        pairs = [pair for pair in self.context.held_out if pair.paired][: self.options.agreement_pairs]
        return measure_agreement(self, pairs, self.context.labels)

    def judge(self, comparisons: Sequence[Comparison], progress: Callable[[int], None]) -> list[Judgement]:
        """Return one judgement per comparison, in order; it is "failed" if the request is longer than `max_tokens`."""
        asked = [comparison for comparison in comparisons if not identical(comparison)]
        orders = [
            (comparison, *sides)
            for comparison in asked
            for sides in (
                (comparison.response, comparison.baseline),
                (comparison.baseline, comparison.response),
            )
        ]
        verdicts = iter(self._verdicts(orders))
        progress(len(comparisons))
        return [identical(c) or self._judgement(c, next(verdicts), next(verdicts)) for c in comparisons]

    def _judgement(self, comparison: Comparison, first: float | None, second: float | None) -> Judgement:
        if first is None or second is None:
            return Judgement(comparison.id, "failed", None, detail=f"longer than max_tokens={self.options.max_tokens}")
        return both_orders(comparison.id, first, second)

    def _verdicts(self, orders: Sequence[tuple[Comparison, str, str]]) -> list[float | None]:
        """Return the probability that the response shown first is better, for each order; cached in the store."""
        requests = [self._request(*order) for order in orders]
        inputs = {
            "format": FORMAT,
            "model": self._model.hash,
            "dtype": self.options.dtype,
            "max_tokens": self.options.max_tokens,
            "requests": hash_value(requests),
            "template": self.template.hash,
        }

        def build(folder: Path) -> None:
            write_json(folder / FILE, self._ask(requests))

        return read_json(self.context.store.artifact(KIND, inputs, build).path / FILE)

    def _request(self, comparison: Comparison, response_1: str, response_2: str) -> str:
        """Return the filled template. The fences' mark is a hash of their content, which no text can contain."""
        turns = [[message.role, message.content] for message in comparison.prompt]
        return self.template.fill(
            comparison.prompt, response_1, response_2, mark=hash_value([turns, response_1, response_2])[:16]
        )

    def _ask(self, requests: Sequence[str]) -> list[float | None]:
        import torch

        contexts, pairs = zip(*map(self.request_ids, requests), strict=True) if requests else ((), ())
        short = [i for i, ids in enumerate(contexts) if len(ids) <= self.options.max_tokens]
        if len(set(pairs)) > 1:
            raise UserError(f"judge hf_pairwise: the tokenizer of {self.options.model} has no one way to write a label")

        def read(logits: torch.Tensor, last: torch.Tensor) -> list[float]:
            final = logits[torch.arange(len(last), device=logits.device), last].float()
            return final[:, list(pairs[0])].softmax(dim=1)[:, 0].tolist()

        verdicts: list[float | None] = [None] * len(requests)
        for i, sure in zip(short, self._model.run([{"input_ids": contexts[i]} for i in short], read), strict=True):
            verdicts[i] = sure
        return verdicts

    def request_ids(self, request: str) -> tuple[tuple[int, ...], tuple[int, int]]:
        """Return a request's token ids up to where the two labels diverge, and the two tokens at that position."""
        renderer = self._model.renderer
        asked = renderer.prompt((Message("user", request),), limit=1 << 30, keep="end")
        first, second = (
            renderer.completion(f"{self.template.verdict} {label}", limit=1 << 30, after=asked)[0]
            for label in self.template.labels
        )
        parting = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
        if parting is None:
            raise UserError(f"judge hf_pairwise: the tokenizer of {self.options.model} cannot tell the labels apart")
        return (*asked.ids, *first[:parting]), (first[parting], second[parting])
