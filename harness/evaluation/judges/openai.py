"""A language model as the judge, behind any OpenAI-compatible endpoint.

Each comparison is asked in both orders. Two equal verdicts are a preference; two opposite ones show that the order
decided, and are a tie. An order without a usable answer (refused, unparsable, failed) leaves the comparison without a
preference, under that status; only usable answers are kept, so the next run asks for the others again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from harness.core.errors import UserError
from harness.core.records import Agreement, Judgement
from harness.evaluation.agreement import measure_agreement
from harness.evaluation.base import Comparison, Forecast, JudgeContext, register_judge
from harness.evaluation.endpoint.ask import Answer, Ask, ask_all, forecast_asks
from harness.evaluation.endpoint.options import TRANSPORT, EndpointOptions, check_endpoint, check_key
from harness.evaluation.judges.orders import both_orders, identical, one_order, policy_first
from harness.evaluation.judges.template import Template, load_template

MOST_LOGPROBS = 20  # that OpenAI and vLLM give
RESERVED = ("messages", "model", "n", "stream")  # fields of a request that are not to be set by hand


@dataclass
class OpenAIOptions(EndpointOptions):
    """The settings under `judge:` in an experiment file."""

    template: str = ""  # "": the task's own; a built-in one by name (harness/evaluation/judges/templates), or a file
    both_orders: bool = True  # false: one order for each comparison, half of each; half the price, no flip rate
    temperature: float | None = 0.0  # null: not sent, for models that accept only their own
    seed: int | None = None  # null: not sent
    max_tokens: int | None = 512  # of the whole answer, a reasoning model's thoughts included; null: not sent
    reasoning_effort: str = ""  # for reasoning models: none, low, ...; "": not sent
    logprobs: int = 5  # alternatives for the label's token, which grade the preference; 0: not asked for
    extra: dict[str, Any] = field(default_factory=dict)  # further fields of the request, as the endpoint takes them
    agreement_pairs: int = 0  # labelled pairs to measure the judge on; 0: its agreement is not measured


def check(options: OpenAIOptions) -> None:
    """Raise `UserError` for settings that cannot work or a template that is not there."""
    for name, low in {"agreement_pairs": 0, "temperature": 0, "max_tokens": 1, "logprobs": 0}.items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise UserError(f"judge.{name} must be at least {low}, got {value}")
    if options.logprobs > MOST_LOGPROBS:
        raise UserError(f"judge.logprobs must be at most {MOST_LOGPROBS}, got {options.logprobs}")
    for name in RESERVED:
        if name in options.extra:
            raise UserError(f"judge.extra may not set {name!r}")
    if options.template:
        load_template(options.template)
    check_endpoint(options, options.max_tokens)


def parameters_of(options: OpenAIOptions) -> dict[str, object]:
    """Return the fields of a request besides its messages; what is not set is not sent."""
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
    """Return the calls, tokens and price of judging these; what is kept costs nothing."""
    return make(options, context).forecast(comparisons)


@register_judge("openai", options=OpenAIOptions, check=check, transport=TRANSPORT, ready=check_key, forecast=forecast)
def make(options: OpenAIOptions, context: JudgeContext) -> OpenAIJudge:
    """Return the judge for one task. Raises `UserError` where there is no template of the task's name."""
    return OpenAIJudge(options, load_template(options.template or context.template), context)


class OpenAIJudge:
    """See the module. `agreement` is measured on first use, and only where the options ask for it."""

    def __init__(self, options: OpenAIOptions, template: Template, context: JudgeContext):
        self.options = options
        self.template = template
        self.context = context
        self.id = f"openai:{options.model}:{template.label}"
        self._asking = (options, parameters_of(options))

    @cached_property
    def agreement(self) -> Agreement | None:
        """How often the preferred of two labelled responses was chosen; a tie counts half, a failure not at all."""
        pairs = [pair for pair in self.context.held_out if pair.paired][: self.options.agreement_pairs]
        return measure_agreement(self, pairs, self.context.labels)

    def judge(self, comparisons: Sequence[Comparison], progress: Callable[[int], None]) -> list[Judgement]:
        """Return one judgement per comparison, in order; `progress(1)` is called as each is done."""
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
        answers = iter(ask_all(flat, self.template.read, *self._asking, **where, progress=advance))
        return [
            self._judgement(comparison, [next(answers) for _ in each])
            for comparison, each in zip(comparisons, asks, strict=True)
        ]

    def forecast(self, comparisons: Sequence[Comparison]) -> Forecast:
        """See the function of this name."""
        asks = [ask for comparison in comparisons for ask in self._asks(comparison)]
        return forecast_asks(asks, *self._asking, cache=self.context.cache)

    def _asks(self, comparison: Comparison) -> list[Ask]:
        if identical(comparison):
            return []
        orders = [(comparison.response, comparison.baseline), (comparison.baseline, comparison.response)]
        if not self.options.both_orders:
            orders = [orders[0 if policy_first(comparison) else 1]]
        return [self._ask(comparison, *order) for order in orders]

    def _ask(self, comparison: Comparison, response_1: str, response_2: str) -> Ask:
        """The identity holds the responses in the order in which they are shown, and not the mark of their fences."""
        turns = [[message.role, message.content] for message in comparison.prompt]
        identity = {"template": self.template.hash, "prompt": turns, "responses": [response_1, response_2]}
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
        if len(answers) == 1:
            return one_order(comparison.id, answers[0].value, policy_first(comparison), usage)
        return both_orders(comparison.id, answers[0].value, answers[1].value, usage)
