"""AlpacaEval 2.0's judge: an annotator of the `alpaca-eval` package, asked through the harness's endpoint client.

Each comparison is asked once, in the order that upstream draws for its instruction. The default annotator answers
with one token, and the preference is the probability of the policy's label among the two labels. `engine: official`
runs the package itself, in a separate process.
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
from harness.evaluation.endpoint.ask import Answer, Ask, ask_all, forecast_asks
from harness.evaluation.endpoint.options import check_endpoint, check_key, check_request
from harness.evaluation.judges.orders import identical, one_order
from harness.tasks.sources import read_packaged


def check(options: AlpacaEvalOptions) -> None:
    """Raise `UserError` for invalid settings or a missing annotator."""
    check_request("request", options.request)
    if options.engine == "official":
        config_of(options)
        check_endpoint(options, None)
        check_official(options)
        return
    annotator = load_annotator(options.annotator)
    client = annotator.settings["completions_kwargs"].get("client_kwargs")
    if isinstance(client, dict) and client.get("base_url") and not options.base_url:
        raise UserError(f"annotator {annotator.name!r} is meant for another endpoint; set judge.base_url as it has it")
    limit = annotator.parameters(options.request).get("max_completion_tokens")
    check_endpoint(replace(options, model=options.model or annotator.model), limit)


def ready(options: AlpacaEvalOptions) -> None:
    """Raise `UserError` if the key is missing, or if the official table is required and unavailable.

    The table is fetched here because the scores need it, before anything is paid.
    """
    check_key(options)
    difficulty_table(options.difficulty)


def forecast(options: AlpacaEvalOptions, context: JudgeContext, comparisons: Sequence[Comparison]) -> Forecast:
    """Return the expected cost of judging the comparisons; for the package itself, only the number of calls."""
    if options.engine == "official":
        return Forecast(len(comparisons), 0, 0, None, None)
    return AlpacaEvalJudge(options, load_annotator(options.annotator), context).forecast(comparisons)


@register_judge("alpaca_eval", options=AlpacaEvalOptions, check=check, ready=ready, forecast=forecast)
def make(options: AlpacaEvalOptions, context: JudgeContext) -> AlpacaEvalJudge | OfficialJudge:
    """Return the judge with the table that its scores need. Raises `UserError` for that table as `ready` does."""
    table = difficulty_table(options.difficulty)
    if options.engine == "official":
        return OfficialJudge(options, context, table)
    return AlpacaEvalJudge(options, load_annotator(options.annotator), context, table)


class AlpacaEvalJudge:
    """See the module. Its agreement with labels is not measured here; `judge-check` measures it."""

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
        """See the module's `forecast`."""
        asks = [self._ask(comparison) for comparison in comparisons if identical(comparison) is None]
        return forecast_asks(asks, self.annotator.read, *self._asking, cache=self.context.cache)

    def difficulty(self, comparisons: Sequence[Comparison]) -> dict | None:
        """See `difficulty_of`."""
        return difficulty_of(comparisons, self.table)

    def _policy_first(self, comparison: Comparison) -> bool:
        return self.annotator.switches and shows_model_first(readable_prompt(comparison.prompt))

    def _ask(self, comparison: Comparison) -> Ask:
        outputs = [comparison.baseline, comparison.response]
        if self._policy_first(comparison):
            outputs.reverse()
        instruction = readable_prompt(comparison.prompt)
        identity = {"annotator": self.annotator.question, "instruction": instruction, "outputs": outputs}
        return Ask(identity, self.annotator.messages(instruction, *outputs))

    def _judgement(self, comparison: Comparison, answer: Answer) -> Judgement:
        if answer.status != "ok":
            return Judgement(comparison.id, answer.status, None, detail=answer.detail, usage=answer.usage)
        return one_order(comparison.id, answer.value, self._policy_first(comparison), usage=answer.usage)


class OfficialJudge:
    """The package itself (see `harness.evaluation.alpaca_eval.official`); a comparison without an answer has failed."""

    agreement = None

    def __init__(self, options: AlpacaEvalOptions, context: JudgeContext, table: DifficultyTable):
        config = config_of(options)
        model = config.settings["completions_kwargs"].get("model_name", "")
        self.id = f"alpaca_eval-official:{model}:{config.name}@{config.hash[:8]}"
        self.options = options
        self.context = context
        self.table = table

    def judge(self, comparisons: Sequence[Comparison], progress: Callable[[int], None]) -> list[Judgement]:
        """Return one judgement per comparison, in order; `progress` is called once, after the package has finished."""
        preferences, reason = annotate(comparisons, self.options, self.context.cache) if comparisons else ({}, "")
        progress(len(comparisons))
        return [_of_official(c, preferences.get(readable_prompt(c.prompt), math.nan), reason) for c in comparisons]

    def difficulty(self, comparisons: Sequence[Comparison]) -> dict | None:
        """See `difficulty_of`."""
        return difficulty_of(comparisons, self.table)


def _of_official(comparison: Comparison, preference: float, reason: str) -> Judgement:
    if math.isnan(preference):
        return Judgement(comparison.id, "failed", None, detail=reason or "the package gave no preference")
    return Judgement(comparison.id, "tie" if preference == 1.5 else "ok", preference - 1)


def difficulty_of(comparisons: Sequence[Comparison], table: DifficultyTable) -> dict | None:
    """Return the table for these comparisons as a JSON-serialisable dict, or None if a prompt is not AlpacaEval's."""
    places = {row.values["instruction"]: i for i, row in enumerate(read_packaged("alpaca_eval"))}
    index = {comparison.id: places.get(readable_prompt(comparison.prompt)) for comparison in comparisons}
    return None if None in index.values() else table.to_json(index)
