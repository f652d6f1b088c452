"""A language model as the judge, behind any OpenAI-compatible endpoint, by the official client.

Each comparison is asked in both orders. Two equal verdicts are a preference; two opposite ones show that the order
decided, and are a tie. An order without a usable answer (refused, unparsable, failed) leaves the comparison without a
preference, under that status; only usable answers are kept, so the next run asks for the others again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from harness.errors import UserError
from harness.evaluation.base import COUNTED, Agreement, Comparison, JudgeContext, Judgement, register_judge
from harness.evaluation.judges.cache import JudgementCache
from harness.evaluation.judges.template import Template, load_template, read_verdict
from harness.evaluation.statistics import wilson_interval
from harness.hashing import hash_value
from harness.tasks.base import Prompt

if TYPE_CHECKING:
    from openai import AsyncOpenAI

CACHE_FILE = "judgements.sqlite"
REFUSAL_CODES = ("content_filter", "content_policy_violation")  # error codes of endpoints that filter the request
LONGEST_DETAIL = 200  # characters
SHORTEST_SECRET = 8  # characters


@dataclass
class OpenAIOptions:
    """The settings under `judge:` in an experiment file."""

    model: str
    base_url: str = ""  # "": the client's own, $OPENAI_BASE_URL or OpenAI's
    key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the key; any word for a server without keys
    template: str = ""  # "": the task's own; hh, tldr, alpaca_eval, or a file
    temperature: float | None = 0.0  # null: not sent, for models that accept only their own
    max_tokens: int | None = 512  # of the whole answer, a reasoning model's thoughts included; null: not sent
    concurrency: int = 16  # requests under way at once
    timeout: float = 60.0  # seconds for one attempt
    max_retries: int = 6  # after a timeout, a lost connection, or status 408, 409, 429 or 5xx
    agreement_pairs: int = 0  # labelled pairs to measure the judge on; 0: its agreement is not measured


def check(options: OpenAIOptions) -> None:
    """Raise `UserError` for settings that cannot work, a template that is not there, or a key that is not set."""
    at_least = {"concurrency": 1, "max_retries": 0, "agreement_pairs": 0, "temperature": 0, "max_tokens": 1}
    for name, low in at_least.items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise UserError(f"judge.{name} must be at least {low}, got {value}")
    if not options.timeout > 0:
        raise UserError(f"judge.timeout must be above 0 seconds, got {options.timeout}")
    if options.base_url and not _is_url(options.base_url):
        raise UserError(
            f"judge.base_url {options.base_url!r} is not of the form http://host:port/v1 (a name and password in it would be written down)"
        )
    if options.template:
        load_template(options.template)
    _key(options)


TRANSPORT = ("key_env", "concurrency", "timeout", "max_retries")


@register_judge("openai", options=OpenAIOptions, check=check, transport=TRANSPORT)
def make(options: OpenAIOptions, context: JudgeContext) -> OpenAIJudge:
    """Return the judge for one task. Raises `UserError` where there is no template of the task's name."""
    return OpenAIJudge(options, load_template(options.template or context.template), context)


@dataclass(frozen=True)
class Answer:
    """What one request gave: a verdict (1 or 2) with status "ok", or another status and the reason."""

    status: str
    verdict: int | None = None
    detail: str = ""


class OpenAIJudge:
    """See the module. `agreement` is measured on first use, and only where the options ask for it."""

    def __init__(self, options: OpenAIOptions, template: Template, context: JudgeContext):
        self.options = options
        self.template = template
        self.context = context
        self.id = f"openai:{options.model}:{template.name}@{template.hash[:8]}"

    @cached_property
    def agreement(self) -> Agreement | None:
        """How often the preferred of two labelled responses was chosen; a tie counts half, a failure not at all."""
        pairs = [pair for pair in self.context.held_out if pair.paired][: self.options.agreement_pairs]
        comparisons = [Comparison(str(i), pair.prompt, *_sides(pair, i)) for i, pair in enumerate(pairs)]
        judged = [j for j in self.judge(comparisons, lambda done: None) if j.status in COUNTED]
        if not judged:
            return None
        right = sum(j.preference if int(j.id) % 2 == 0 else 1 - j.preference for j in judged)
        return Agreement(right / len(judged), *wilson_interval(right, len(judged)), len(judged), self.context.labels)

    def judge(self, comparisons: Sequence[Comparison], progress: Callable[[int], None]) -> list[Judgement]:
        """Return one judgement per comparison, in order; `progress(1)` is called as each is done."""
        return asyncio.run(self._judge(comparisons, progress)) if comparisons else []

    async def _judge(self, comparisons: Sequence[Comparison], progress: Callable[[int], None]) -> list[Judgement]:
        from openai import AsyncOpenAI

        key = _key(self.options)
        limits = {"timeout": self.options.timeout, "max_retries": self.options.max_retries}
        with JudgementCache(self.context.cache / CACHE_FILE) as cache:
            async with AsyncOpenAI(api_key=key, base_url=self.options.base_url or None, **limits) as client:
                session = Session(self.options, self.template, client, cache, key)

                async def one(comparison: Comparison) -> Judgement:
                    judgement = await session.judge(comparison)
                    progress(1)
                    return judgement

                return list(await asyncio.gather(*map(one, comparisons)))


class Session:
    """One client, one cache and one limit on the requests under way, while a list of comparisons is judged."""

    def __init__(
        self, options: OpenAIOptions, template: Template, client: AsyncOpenAI, cache: JudgementCache, key: str
    ):
        self.template = template
        self.client = client
        self.cache = cache
        self.key = key
        self.slots = asyncio.Semaphore(options.concurrency)
        decoding = {"temperature": options.temperature, "max_completion_tokens": options.max_tokens}
        self.request = {
            "model": options.model,
            **{name: value for name, value in decoding.items() if value is not None},
        }

    async def judge(self, comparison: Comparison) -> Judgement:
        """Ask in both orders and put the verdicts together."""
        if comparison.response == comparison.baseline:
            return Judgement(comparison.id, "tie", 0.5, None, "identical responses: not asked")
        response, baseline = comparison.response, comparison.baseline
        first, second = await asyncio.gather(
            self.ask(comparison.prompt, response, baseline), self.ask(comparison.prompt, baseline, response)
        )
        for answer, order in ((first, "policy first"), (second, "baseline first")):
            if answer.status != "ok":
                return Judgement(comparison.id, answer.status, None, None, f"{order}: {answer.detail}")
        if first.verdict == second.verdict:
            return Judgement(comparison.id, "tie", 0.5, True)
        return Judgement(comparison.id, "ok", 1.0 if first.verdict == 1 else 0.0, False)

    async def ask(self, prompt: Prompt, response_1: str, response_2: str) -> Answer:
        """Return the verdict on two responses shown in this order, from the cache if it was had before."""
        cache_key = self.cache_key(prompt, response_1, response_2)
        known = self.cache.get(cache_key)
        if known is not None:
            return Answer("ok", known)
        messages = [{"role": "user", "content": self.template.fill(prompt, response_1, response_2)}]
        async with self.slots:
            try:
                completion = await self.client.chat.completions.create(messages=messages, **self.request)
            except Exception as error:  # an endpoint can make its client raise anything; none of it may stop the others
                return self._failure(error)
        answer, text = self._read(completion)
        if answer.verdict is not None:
            served_by = str(getattr(completion, "model", None) or "")
            self.cache.put(cache_key, answer.verdict, self._clean(text), self._clean(served_by))
        return answer

    def cache_key(self, prompt: Prompt, response_1: str, response_2: str) -> str:
        """Return the hash of all that determines the answer.

        The two responses stand in it in the order in which they are shown. The endpoint is part of it: one model name
        on two servers may be two models, or one at two precisions. The mark of the fences is not, being random.
        """
        request = {"endpoint": str(self.client.base_url), "template": self.template.hash, **self.request}
        turns = [[message.role, message.content] for message in prompt]
        return hash_value({"request": request, "prompt": turns, "responses": [response_1, response_2]})

    def _read(self, completion: object) -> tuple[Answer, str]:
        """Return the verdict in a completion, and the text that it stands in. Servers differ: nothing is assumed."""
        choices = getattr(completion, "choices", None)
        if not isinstance(choices, list):
            return Answer("failed", detail="the endpoint's answer is not a chat completion"), ""
        if not choices:
            return Answer("refused", detail="the answer has no choices"), ""
        message = getattr(choices[0], "message", None)
        reason = getattr(choices[0], "finish_reason", None)
        refusal = getattr(message, "refusal", None)
        if refusal or reason == "content_filter":
            return Answer("refused", detail=self._short(refusal or "content filter")), ""
        text = getattr(message, "content", None)
        if not isinstance(text, str) or not text.strip():
            return Answer("unparsable", detail=f"empty answer (finish_reason {reason!s:.20})"), ""
        if reason == "length":
            return Answer("unparsable", detail="the answer was cut off; raise judge.max_tokens"), text
        verdict = read_verdict(text)
        if verdict is None:
            return Answer(
                "unparsable", detail=self._short(f"no verdict in the last line: {text.strip()[-80:]!r}")
            ), text
        return Answer("ok", verdict), text

    def _failure(self, error: Exception) -> Answer:
        code, name = getattr(error, "status_code", None), type(error).__name__
        if getattr(error, "code", None) in REFUSAL_CODES:
            return Answer("refused", detail=self._short(f"{name}: {error}"))
        if code == 401:  # endpoints quote a part of the key in this message
            return Answer("failed", detail=f"{name}: the endpoint does not accept the key")
        return Answer("failed", detail=self._short(f"{name}: {error}"))

    def _short(self, text: object) -> str:
        return " ".join(self._clean(str(text)).split())[:LONGEST_DETAIL]

    def _clean(self, text: str) -> str:
        """Nothing that an endpoint says brings the key into a file. (A short word is no key; see `_key`.)"""
        return text.replace(self.key, "(key)") if len(self.key) >= SHORTEST_SECRET else text


def _sides(pair, index: int) -> tuple[str, str]:
    """Every other labelled pair is swapped, so that a judge that always prefers one side is right half the time."""
    return (pair.chosen, pair.rejected) if index % 2 == 0 else (pair.rejected, pair.chosen)


def _key(options: OpenAIOptions) -> str:
    key = os.environ.get(options.key_env, "").strip()
    if not key:
        raise UserError(
            f"judge openai: the environment variable {options.key_env} holds no key; set it"
            " (to any word if the server at judge.base_url asks for none)"
        )
    if not (key.isascii() and key.isprintable()):  # the HTTP library would quote it in its error
        raise UserError(f"judge openai: the key in {options.key_env} holds characters that no key has; set it again")
    return key


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
        )
    except ValueError:
        return False
