"""AlpacaEval 2.0's judge: an annotator of the `alpaca-eval` package, asked through our own way to an endpoint.

Each comparison is asked once, in the order that upstream draws for its instruction. The default annotator answers
with one token, and the preference is the probability of the policy's label among the two. `engine: official` runs the
package itself, in a process of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from harness.core.errors import UserError
from harness.core.prompt import readable_prompt
from harness.core.records import Judgement
from harness.evaluation.alpaca_eval.annotators import Annotator, load_annotator
from harness.evaluation.alpaca_eval.difficulty import DifficultyTable, difficulty_table
from harness.evaluation.alpaca_eval.metrics import shows_model_first
from harness.evaluation.alpaca_eval.official import annotate, check_official, config_of
from harness.evaluation.alpaca_eval.options import AlpacaEvalOptions
from harness.evaluation.base import Comparison, Forecast, JudgeContext, register_judge
from harness.evaluation.endpoint.ask import Ask, ask_all, forecast_asks
from harness.evaluation.endpoint.options import TRANSPORT, check_endpoint, check_key
from harness.evaluation.judges.orders import identical, one_order
from harness.tasks.sources import read_packaged

RESERVED = ("messages", "model", "n", "stream")  # fields of a request that are not to be set by hand


def check(options: AlpacaEvalOptions) -> None:
    """Raise `UserError` for settings that cannot work, or an annotator that is not there."""
    for name in RESERVED:
        if name in options.request:
            raise UserError(f"judge.request may not set {name!r}")
    if options.engine == "official":
        config_of(options)
        check_endpoint(options, None)
        check_official(options)
        return
    annotator = load_annotator(options.annotator)
    own = (annotator.settings["completions_kwargs"].get("client_kwargs") or {}).get("base_url")
    if own and not options.base_url:
        raise UserError(f"annotator {annotator.name!r} is meant for another endpoint; set judge.base_url (its: {own})")
    limit = annotator.parameters(options.request).get("max_completion_tokens")
    check_endpoint(replace(options, model=options.model or annotator.model), limit)


def ready(options: AlpacaEvalOptions) -> None:
    """Raise `UserError` for a key that is not set, or where the official table is asked for and cannot be had.

    What the scores need is had before anything is paid.
    """
    check_key(options)
    difficulty_table(options.difficulty)


def forecast(options: AlpacaEvalOptions, context: JudgeContext, comparisons: Sequence[Comparison]) -> Forecast:
    """Return the calls, tokens and price of judging these; of the package itself no more than the number of calls."""
    if options.engine == "official":
        return Forecast(len(comparisons), 0, 0, None, None)
    return AlpacaEvalJudge(options, load_annotator(options.annotator), context).forecast(comparisons)


@register_judge(
    "alpaca_eval", options=AlpacaEvalOptions, check=check, transport=TRANSPORT, ready=ready, forecast=forecast
)
def make(options: AlpacaEvalOptions, context: JudgeContext) -> AlpacaEvalJudge | OfficialJudge:
    """Return the judge with the table that its scores need. Raises `UserError` as `ready` does for that table."""
    table = difficulty_table(options.difficulty)
    if options.engine == "official":
        return OfficialJudge(options, context, table)
    return AlpacaEvalJudge(options, load_annotator(options.annotator), context, table)


class AlpacaEvalJudge:
    """See the module. There are no labels that it was measured on; `judge-check` does that."""

    agreement = None

    def __init__(
        self,
        options: AlpacaEvalOptions,
        annotator: Annotator,
        context: JudgeContext,
        table: DifficultyTable | None = None,  # forecasting needs none
    ):
        self.annotator = annotator
        self.table = table
        self.context = context
        self.options = replace(options, model=options.model or annotator.model)
        self.id = f"alpaca_eval:{self.options.model}:{annotator.name}@{annotator.hash[:8]}"
        self._asking = (self.options, annotator.parameters({**options.request, "model": self.options.model}))

    def judge(self, comparisons: Sequence[Comparison], progress: Callable[[int], None]) -> list[Judgement]:
        """Return one judgement per comparison, in order; `progress(1)` is called as each is done."""
        known = [identical(comparison) for comparison in comparisons]
        if done := sum(judgement is not None for judgement in known):
            progress(done)
        asks = [self._ask(c) for c, judgement in zip(comparisons, known, strict=True) if judgement is None]
        where = {"cache": self.context.cache, "account": self.context.account}
        answers = iter(ask_all(asks, self.annotator.read, *self._asking, **where, progress=progress))
        return [
            judgement or self._judgement(comparison, next(answers))
            for comparison, judgement in zip(comparisons, known, strict=True)
        ]

    def forecast(self, comparisons: Sequence[Comparison]) -> Forecast:
        """See the function of this name."""
        asks = [self._ask(comparison) for comparison in comparisons if identical(comparison) is None]
        return forecast_asks(asks, *self._asking, cache=self.context.cache)

    def difficulty(self, comparisons: Sequence[Comparison]) -> dict | None:
        """Return what `difficulty_of` says of these comparisons."""
        return difficulty_of(comparisons, self.table)

    def _policy_first(self, comparison: Comparison) -> bool:
        return self.annotator.switches and shows_model_first(readable_prompt(comparison.prompt))

    def _ask(self, comparison: Comparison) -> Ask:
        outputs = [comparison.baseline, comparison.response]
        if self._policy_first(comparison):
            outputs.reverse()
        instruction = readable_prompt(comparison.prompt)
        identity = {"annotator": self.annotator.hash, "instruction": instruction, "outputs": outputs}
        return Ask(identity, self.annotator.messages(instruction, *outputs))

    def _judgement(self, comparison: Comparison, answer) -> Judgement:
        if answer.status != "ok":
            return Judgement(comparison.id, answer.status, None, detail=answer.detail, usage=answer.usage)
        return one_order(comparison.id, answer.value, self._policy_first(comparison), answer.usage)


class OfficialJudge:
    """The package itself (see `alpaca_official`); what it does not answer is failed."""

    agreement = None

    def __init__(self, options: AlpacaEvalOptions, context: JudgeContext, table: DifficultyTable):
        config = config_of(options)
        model = config.settings["completions_kwargs"].get("model_name", "")
        self.id = f"alpaca_eval-official:{model}:{config.name}@{config.hash[:8]}"
        self.options = options
        self.context = context
        self.table = table

    def judge(self, comparisons: Sequence[Comparison], progress: Callable[[int], None]) -> list[Judgement]:
        """Return one judgement per comparison, in order; `progress` is told once, when the package has ended."""
        preferences, reason = annotate(comparisons, self.options, self.context.cache) if comparisons else ({}, "")
        progress(len(comparisons))
        return [_of_official(c, preferences.get(readable_prompt(c.prompt), math.nan), reason) for c in comparisons]

    def difficulty(self, comparisons: Sequence[Comparison]) -> dict | None:
        """Return what `difficulty_of` says of these comparisons."""
        return difficulty_of(comparisons, self.table)


def _of_official(comparison: Comparison, preference: float, reason: str) -> Judgement:
    if math.isnan(preference):
        return Judgement(comparison.id, "failed", None, detail=reason or "the package gave no preference")
    return Judgement(comparison.id, "tie" if preference == 1.5 else "ok", preference - 1)


def difficulty_of(comparisons: Sequence[Comparison], table: DifficultyTable) -> dict | None:
    """Return the table as JSON holds it, for these comparisons; None where one is on no instruction of AlpacaEval's."""
    places = {row.values["instruction"]: i for i, row in enumerate(read_packaged("alpaca_eval"))}
    found = {comparison.id: places.get(readable_prompt(comparison.prompt)) for comparison in comparisons}
    return None if None in found.values() else table.to_json(found)
