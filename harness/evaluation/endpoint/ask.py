"""Asks many questions of one chat endpoint, concurrently and within limits; each answer is paid for once and cached.

All judges behind an endpoint use `ask_all`. The official client retries what HTTP allows to be retried (timeouts, lost
connections, truncated bodies, and status 408, 409, 429 and 5xx, with exponential backoff and jitter or after the time
in Retry-After). A complete but malformed response (no JSON, no choices) is retried here, with the same backoff.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.hashing import hash_value
from harness.core.records import Usage
from harness.evaluation.base import Forecast
from harness.evaluation.endpoint.cache import CACHE_FILE, AnswerCache, Kept
from harness.evaluation.endpoint.money import BYTES_PER_TOKEN, Purse, bound_on, price_of, usage_in
from harness.evaluation.endpoint.options import EndpointOptions, read_key, url_of, without_key
from harness.evaluation.endpoint.reply import Reply, SpoiltError, UnparsableError, first_choice, parsed

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI

REFUSAL_CODES = ("content_filter", "content_policy_violation")  # error codes of endpoints that filter the request
HOPELESS = {401: "the endpoint does not accept the key", 404: "the endpoint has no such model or address"}
LONGEST_DETAIL = 200  # characters
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0  # seconds before retrying a malformed response, as in the client
OPTIONAL = ("logprobs", "top_logprobs")  # parameters that a request can do without
FORBIDDEN_STATUS = (400, 422)  # statuses with which endpoints reject a parameter


@dataclass(frozen=True)
class Ask:
    """One question.

    `messages` are sent to the endpoint. `identity` (JSON) is what determines the answer besides endpoint and
    parameters: the template's hash and the texts, but no random delimiter. Equal identities are the same question.
    """

    identity: Mapping
    messages: Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Answer:
    """The outcome of one question.

    `status` is "ok", with the reader's result in `value`, or "refused", "unparsable" or "failed", with the reason in
    `detail`. `usage` is what the answer used when it was paid for, also for an answer from the cache.
    """

    status: str
    value: float | None = None
    detail: str = ""
    text: str = ""
    usage: Usage | None = None


def ask_all(
    asks: Sequence[Ask],
    read: Callable[[Reply], float],
    options: EndpointOptions,
    parameters: Mapping[str, object],
    *,
    cache: Path,
    account: str,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """Ask every question that is not in the cache; return one answer per question, in order.

    - `read(reply)` returns the value of a usable reply, or raises `UnparsableError`. It is not called for refusals.
    - `parameters` are the request's fields besides `messages`: model, temperature, max_completion_tokens, ... If the
      endpoint rejects logprobs, the request is repeated without them.
    - `cache` is the folder of cached answers; `account` is what spending is booked on (for `options.budget_usd`).
    - `progress(k)` is called when k more questions are done.

    Errors of the endpoint become answers with a status. Raises `UserError` for a missing key or a damaged cache.
    """
    return asyncio.run(_ask_all(asks, read, options, parameters, cache, account, progress)) if asks else []


def forecast_asks(
    asks: Sequence[Ask], options: EndpointOptions, parameters: Mapping[str, object], *, cache: Path
) -> Forecast:
    """Return the expected cost of `ask_all`. Makes no call and needs no key."""
    keys = {cache_key(ask, options, parameters): ask for ask in asks}
    missing = list(keys.values())
    if (cache / CACHE_FILE).is_file():
        with AnswerCache(cache / CACHE_FILE) as kept:
            missing = [ask for key, ask in keys.items() if kept.get(key) is None]
    price, limit = price_of(options.model, options.price), parameters.get("max_completion_tokens")
    prompt = sum(bound_on(ask.messages, None, None).prompt_tokens for ask in missing) // BYTES_PER_TOKEN
    completion = len(missing) * limit if isinstance(limit, int) else None
    usd = price.of(prompt, completion) if price and completion is not None else None
    return Forecast(len(keys), len(keys) - len(missing), prompt, completion, usd)


def cache_key(ask: Ask, options: EndpointOptions, parameters: Mapping[str, object]) -> str:
    """Return the hash of everything that determines an answer.

    The endpoint is included, because two servers may use one name for different models or precisions.
    """
    return hash_value({"endpoint": url_of(options), "parameters": dict(parameters), "ask": dict(ask.identity)})


async def _ask_all(
    asks: Sequence[Ask],
    read: Callable[[Reply], float],
    options: EndpointOptions,
    parameters: Mapping[str, object],
    cache: Path,
    account: str,
    progress: Callable[[int], None],
) -> list[Answer]:
    import httpx2
    from openai import AsyncOpenAI

    key = read_key(options.key_env)
    keys = [cache_key(ask, options, parameters) for ask in asks]
    limits = httpx2.Limits(max_connections=options.concurrency, max_keepalive_connections=options.concurrency)
    http = httpx2.AsyncClient(
        timeout=options.timeout, limits=limits, follow_redirects=False, event_hooks={"request": _pacers(options)}
    )
    retries = {"max_retries": options.max_retries, "timeout": options.timeout}
    with AnswerCache(cache / CACHE_FILE) as kept:
        async with AsyncOpenAI(api_key=key, base_url=url_of(options), http_client=http, **retries) as client:
            session = _Session(read, options, parameters, client, kept, account, key)

            async def one(cache_key: str, ask: Ask) -> Answer:
                answer = await session.answer(cache_key, ask)
                progress(counts[cache_key])
                return answer

            counts = {key: keys.count(key) for key in keys} if len(set(keys)) < len(keys) else dict.fromkeys(keys, 1)
            first = dict(reversed(list(zip(keys, asks, strict=True))))  # equal questions are asked once
            order = list(dict.fromkeys(keys))
            answers = dict(zip(order, await asyncio.gather(*(one(k, first[k]) for k in order)), strict=True))
    return [answers[key] for key in keys]


class _Session:
    """The state of one `ask_all`: the client, the cache, the budget and the limit on concurrent requests."""

    def __init__(
        self,
        read: Callable[[Reply], float],
        options: EndpointOptions,
        parameters: Mapping[str, object],
        client: AsyncOpenAI,
        cache: AnswerCache,
        account: str,
        key: str,
    ):
        self.read = read
        self.options = options
        self.parameters = dict(parameters)
        self.client = client
        self.cache = cache
        self.account = account
        self.key = key
        self.price = price_of(options.model, options.price)
        self.purse = Purse(options.budget_usd, lambda: cache.spent(account))
        self.slots = asyncio.Semaphore(options.concurrency)
        self.hopeless = ""  # the reason why no further question is asked, "" if there is none

    async def answer(self, cache_key: str, ask: Ask) -> Answer:
        kept = self.cache.get(cache_key)
        if kept is None:
            async with self.slots:
                kept = self.cache.get(cache_key)  # another process may have asked it in the meantime
                if kept is None:
                    return await self._ask_until_whole(cache_key, ask)
        return Answer("ok", kept.value, text=kept.text, usage=kept.usage)

    async def _ask_until_whole(self, cache_key: str, ask: Ask) -> Answer:
        """Ask, and retry malformed responses at increasing intervals."""
        for attempt in range(self.options.max_retries + 1):
            try:
                return await self._ask_within_budget(cache_key, ask)
            except SpoiltError as spoilt:
                answer = Answer("failed", detail=self._short(spoilt))
            if attempt < self.options.max_retries:
                await asyncio.sleep(min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * (1 - random.random() / 4))
        return answer

    async def _ask_within_budget(self, cache_key: str, ask: Ask) -> Answer:
        if self.hopeless:
            return Answer("failed", detail=self.hopeless)
        bound = bound_on(ask.messages, self.parameters.get("max_completion_tokens"), self.price)
        if not await self.purse.take(bound.usd or 0.0):
            self.hopeless = f"not asked: judge.budget_usd of {self.options.budget_usd:g} is spent"
            return Answer("failed", detail=self.hopeless)
        try:
            return await self._ask(cache_key, ask, bound)
        finally:
            await self.purse.give_back(bound.usd or 0.0)

    async def _ask(self, cache_key: str, ask: Ask, bound: Usage) -> Answer:
        import httpx2

        body = {**self.parameters, "messages": list(ask.messages)}
        try:
            # Get the client's raw response, because its content is checked here.
            response = await self.client.post("/chat/completions", cast_to=httpx2.Response, body=body)
        except Exception as error:  # the client can raise anything; no error may stop the other questions
            if self._refuses_logprobs(error, body):
                return await self._ask(cache_key, ask, bound)
            return self._failure(error)
        completion = parsed(response.content)
        usage = usage_in(completion, self.price) or bound
        try:
            reply = Reply(first_choice(completion))
            if reply.refusal:
                answer = Answer("refused", detail=self._short(reply.refusal), usage=usage)
            else:
                answer = Answer("ok", self.read(reply), text=self._clean(reply.text), usage=usage)
        except UnparsableError as error:
            answer = Answer("unparsable", detail=self._short(error), usage=usage)
        except SpoiltError:
            self.cache.spend(self.account, self.options.model, usage)
            raise
        if answer.value is None:
            self.cache.spend(self.account, self.options.model, usage)
        else:
            served_by = self._clean(str(completion.get("model") or ""))
            self.cache.keep(
                cache_key, Kept(answer.value, answer.text, served_by, usage), self.account, self.options.model
            )
        return answer

    def _refuses_logprobs(self, error: Exception, body: Mapping) -> bool:
        """Return whether the request was rejected because of logprobs; if so, later requests do without them."""
        refused = getattr(error, "status_code", None) in FORBIDDEN_STATUS and "logprob" in str(error).lower()
        if refused:
            self.parameters = {name: value for name, value in self.parameters.items() if name not in OPTIONAL}
        return refused and any(name in body for name in OPTIONAL)

    def _failure(self, error: Exception) -> Answer:
        name = type(error).__name__
        if getattr(error, "code", None) in REFUSAL_CODES:
            return Answer("refused", detail=self._short(f"{name}: {error}"))
        status = getattr(error, "status_code", None)
        if status in HOPELESS:  # its message is not repeated, because endpoints quote part of the key in it
            self.hopeless = f"{name}: {HOPELESS[status]}"
            return Answer("failed", detail=self.hopeless)
        return Answer("failed", detail=self._short(f"{name}: {error}"))

    def _short(self, text: object) -> str:
        return " ".join(self._clean(str(text)).split())[:LONGEST_DETAIL]

    def _clean(self, text: str) -> str:
        return without_key(text, self.key)


def _pacers(options: EndpointOptions) -> list[Callable]:
    """Return request hooks that delay every attempt until the per-minute limits allow it."""

    def pacer(per_minute: float, amount: Callable) -> Callable:
        free_at = 0.0

        async def wait(request: httpx2.Request) -> None:
            nonlocal free_at
            now = asyncio.get_running_loop().time()
            start = max(now, free_at)
            free_at = start + amount(request) * 60 / per_minute
            await asyncio.sleep(start - now)

        return wait

    hooks = []
    if options.requests_per_minute:
        hooks.append(pacer(options.requests_per_minute, lambda request: 1))
    if options.tokens_per_minute:
        hooks.append(pacer(options.tokens_per_minute, lambda request: len(request.content) / BYTES_PER_TOKEN))
    return hooks
