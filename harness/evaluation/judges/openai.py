"""A language model as the judge, behind any OpenAI-compatible endpoint.

Each comparison is asked in both orders. Two equal verdicts give a preference; two opposite ones show that the order
decided, and give a tie. If the answer to an order is unusable (refused, unparsable, failed), the comparison gets that
status and no preference. Whole replies are paid for once, with or without a verdict; the next run asks again only where
none arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from harness.core.dials import dial
from harness.core.records import Agreement, Judgement
from harness.evaluation.agreement import measure_agreement
from harness.evaluation.base import Comparison, Forecast, JudgeContext, register_judge
from harness.evaluation.endpoint.ask import Answer, Ask, ask_all, forecast_asks
from harness.evaluation.endpoint.options import EndpointOptions, check_endpoint, check_key, check_request
from harness.evaluation.endpoint.reply import Reply
from harness.evaluation.judges.orders import both_orders, identical, one_order, policy_first
from harness.evaluation.judges.template import Template, load_template

MOST_LOGPROBS = 20  # the limit of OpenAI and vLLM


@dataclass
class OpenAIOptions(EndpointOptions):
    """The settings under `judge:` in an experiment file."""

    template: str = ""  # "": the task's own; a built-in one by name (harness/evaluation/judges/templates), or a file
    both_orders: bool = True  # false: one order per comparison, half in each order; half the price, no flip rate
    temperature: float | None = dial(0.0, at_least=0)  # null: not sent, for models with a fixed temperature
    seed: int | None = None  # null: not sent
    # For the whole answer, including a reasoning model's reasoning; null: not sent.
    max_tokens: int | None = dial(512, at_least=1)
    reasoning_effort: str = ""  # for reasoning models: none, low, ...; "": not sent
    # Alternatives for the label's token, for a graded preference; 0: not requested.
    logprobs: int = dial(5, at_least=0, at_most=MOST_LOGPROBS)
    extra: dict[str, Any] = field(default_factory=dict)  # further request fields, sent unchanged
    agreement_pairs: int = dial(0, at_least=0)  # labelled pairs for measuring the judge; 0: it is not measured


def check(options: OpenAIOptions) -> None:
    """Raise `UserError` for a reserved request field, a missing template or an endpoint that could not work."""
    check_request("extra", options.extra)
    if options.template:
        load_template(options.template)
    check_endpoint(options, options.max_tokens)


def parameters_of(options: OpenAIOptions) -> dict[str, object]:
    """Return the fields of a request besides its messages; unset options are left out."""
    fields = {
        "temperature": options.temperature,
        "seed": options.seed,
        "max_completion_tokens": options.max_tokens,
        "reasoning_effort": options.reasoning_effort or None,
        "logprobs": True if options.logprobs else None,
        "top_logprobs": options.logprobs or None,
    }
    return {
        "model": options.model,
        **{name: value for name, value in fields.items() if value is not None},
        **options.extra,
    }


def forecast(options: OpenAIOptions, context: JudgeContext, comparisons: Sequence[Comparison]) -> Forecast:
    """Return the expected calls, tokens and price of judging the comparisons; cached answers cost nothing."""
    return make(options, context).forecast(comparisons)


@register_judge("openai", options=OpenAIOptions, check=check, ready=check_key, forecast=forecast)
def make(options: OpenAIOptions, context: JudgeContext) -> OpenAIJudge:
    """Return the judge of one task. Raises `UserError` if the template does not exist."""
    return OpenAIJudge(options, load_template(options.template or context.template), context)


class OpenAIJudge:
    """See the module. `agreement` is measured on first use, and only if the options request it."""

    def __init__(self, options: OpenAIOptions, template: Template, context: JudgeContext):
        self.options = options
        self.template = template
        self.context = context
        self.id = f"openai:{options.model}:{template.label}"
        self._asking = (options, parameters_of(options))

    @cached_property
    def agreement(self) -> Agreement | None:
        """The accuracy on held-out labelled pairs; a tie counts 0.5, and failures are left out."""
        pairs = [pair for pair in self.context.held_out if pair.paired][: self.options.agreement_pairs]
        return measure_agreement(self, pairs, self.context.labels)

    def judge(self, comparisons: Sequence[Comparison], progress: Callable[[int], None]) -> list[Judgement]:
        """Return one judgement per comparison, in order; `progress(k)` is called when k more are done."""
        asks = [self._asks(comparison) for comparison in comparisons]
        per_comparison = 2 if self.options.both_orders else 1
        answered = 0

        def advance(more: int) -> None:
            nonlocal answered
            before, answered = answered, answered + more
            if done := answered // per_comparison - before // per_comparison:
                progress(done)

        if unasked := sum(not each for each in asks):
            progress(unasked)
        flat = [ask for each in asks for ask in each]
        where = {"cache": self.context.cache, "account": self.context.account}
        answers = iter(ask_all(flat, self._read, *self._asking, **where, progress=advance))
        return [
            self._judgement(comparison, [next(answers) for _ in each])
            for comparison, each in zip(comparisons, asks, strict=True)
        ]

    def forecast(self, comparisons: Sequence[Comparison]) -> Forecast:
        """See the module's `forecast`."""
        asks = [ask for comparison in comparisons for ask in self._asks(comparison)]
        return forecast_asks(asks, self._read, *self._asking, cache=self.context.cache)

    def _read(self, reply: Reply) -> tuple[float, bool]:
        """Return an answer's preference for the response shown first, and whether it comes from log-probs."""
        return self.template.read(reply), self.template.grades(reply)

    def _asks(self, comparison: Comparison) -> list[Ask]:
        if identical(comparison):
            return []
        orders = [(comparison.response, comparison.baseline), (comparison.baseline, comparison.response)]
        if not self.options.both_orders:
            orders = [orders[0 if policy_first(comparison) else 1]]
        return [self._ask(comparison, *order) for order in orders]

    def _ask(self, comparison: Comparison, response_1: str, response_2: str) -> Ask:
        """Return the question; its identity has the responses in the order shown, but not the fences' random mark."""
        turns = [[message.role, message.content] for message in comparison.prompt]
        identity = {"template": self.template.question, "prompt": turns, "responses": [response_1, response_2]}
        content = self.template.fill(comparison.prompt, response_1, response_2)
        return Ask(identity, [{"role": "user", "content": content}])

    def _judgement(self, comparison: Comparison, answers: list[Answer]) -> Judgement:
        if not answers:
            return identical(comparison)
        used = [answer.usage for answer in answers if answer.usage]
        usage = sum(used[1:], start=used[0]) if used else None
        orders = ("policy first", "baseline first")
        if not self.options.both_orders:
            orders = orders[:1] if policy_first(comparison) else orders[1:]
        for answer, order in zip(answers, orders, strict=True):
            if answer.status != "ok":
                return Judgement(comparison.id, answer.status, None, None, f"{order}: {answer.detail}", usage=usage)
        preferences, graded = zip(*(answer.value for answer in answers), strict=True)
        told = {"graded": sum(graded) / len(graded), "usage": usage}
        if len(answers) == 1:
            return one_order(comparison.id, *preferences, policy_first(comparison), **told)
        return both_orders(comparison.id, *preferences, **told)
