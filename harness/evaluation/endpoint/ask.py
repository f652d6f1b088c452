"""Asks many questions of one chat endpoint, concurrently and within limits; each answer is paid for once and cached.

All judges behind an endpoint use `ask_all`. The official client retries what HTTP allows to be retried (timeouts, lost
connections, truncated bodies, and status 408, 409, 429 and 5xx, with exponential backoff and jitter or after the time
in Retry-After). A complete but malformed response (no JSON, no choices) is retried here, with the same backoff.

An endpoint is not trusted: whatever it answers becomes the answer to that one question, with a status and a reason.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from harness.core.errors import one_line
from harness.core.hashing import hash_value
from harness.core.records import Usage
from harness.evaluation.base import Forecast
from harness.evaluation.endpoint.cache import CACHE_FILE, AnswerCache, Kept
from harness.evaluation.endpoint.money import BYTES_PER_TOKEN, Purse, bound_on, price_of, usage_in
from harness.evaluation.endpoint.options import EndpointOptions, read_key, secrets_of, url_of, without
from harness.evaluation.endpoint.reply import Reply, SpoiltError, UnparsableError, first_choice, parsed

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI

V = TypeVar("V")

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
class Answer(Generic[V]):
    """The outcome of one question.

    `status` is "ok", with the reader's result in `value`, or "refused", "unparsable" or "failed", with the reason in
    `detail`. `usage` is what the answer used when it was paid for, also for an answer from the cache.
    """

    status: str
    value: V | None = None
    detail: str = ""
    usage: Usage | None = None


def ask_all(
    asks: Sequence[Ask],
    read: Callable[[Reply], V],
    options: EndpointOptions,
    parameters: Mapping[str, object],
    *,
    cache: Path,
    account: str,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Answer[V]]:
    """Ask each question whose reply is not in the cache, read all replies, and return one answer per question in order.

    - `read(reply)` returns the value of a usable reply, or raises `UnparsableError`. It is not called for refusals.
    - `parameters` are the request's fields besides `messages`: model, temperature, max_completion_tokens, ... If the
      endpoint rejects logprobs, the request is repeated without them.
    - `cache` is the folder of cached replies; `account` is what spending is booked on (for `options.budget_usd`).
    - `progress(k)` is called when k more questions are done.

    A whole reply is paid for once, also one without a verdict (see `ask_again` of the options). Errors of the endpoint
    become answers with a status, and are asked again by the next call. Raises `UserError` for a missing key or a
    damaged cache.
    """
    return asyncio.run(_ask_all(asks, read, options, parameters, cache, account, progress)) if asks else []


def forecast_asks(
    asks: Sequence[Ask],
    read: Callable[[Reply], object],
    options: EndpointOptions,
    parameters: Mapping[str, object],
    *,
    cache: Path,
) -> Forecast:
    """Return the expected cost of `ask_all`. Makes no call and needs no key."""
    keys = {cache_key(ask, options, parameters): ask for ask in asks}
    missing = list(keys.values())
    if (cache / CACHE_FILE).is_file():
        with AnswerCache(cache / CACHE_FILE) as kept:
            missing = [ask for key, ask in keys.items() if _known(kept, key, read, options) is None]
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
    read: Callable[[Reply], V],
    options: EndpointOptions,
    parameters: Mapping[str, object],
    cache: Path,
    account: str,
    progress: Callable[[int], None],
) -> list[Answer[V]]:
    from openai import AsyncOpenAI

    from harness.evaluation.endpoint.http import BoundedClient

    key = read_key(options.key_env)
    keys = [cache_key(ask, options, parameters) for ask in asks]
    http = BoundedClient(options)
    retries = {"max_retries": options.max_retries, "timeout": options.timeout}
    with AnswerCache(cache / CACHE_FILE) as kept:
        async with AsyncOpenAI(api_key=key, base_url=url_of(options), http_client=http, **retries) as client:
            endpoint = _Endpoint(read, options, parameters, client, kept, account)
            counts = Counter(keys)

            async def one(cache_key: str, ask: Ask) -> Answer[V]:
                answer = await endpoint.answer(cache_key, ask)
                progress(counts[cache_key])
                return answer

            first = dict(reversed(list(zip(keys, asks, strict=True))))  # equal questions are asked once
            order = list(dict.fromkeys(keys))
            answers = dict(zip(order, await asyncio.gather(*(one(k, first[k]) for k in order)), strict=True))
    return [answers[key] for key in keys]


def _known(cache: AnswerCache, key: str, read: Callable[[Reply], V], options: EndpointOptions) -> Answer[V] | None:
    """Return the answer that the cache holds; None if the question has to be asked."""
    kept = cache.get(key)
    answer = _read(read, kept) if kept else None
    return None if answer is None or (options.ask_again and answer.status != "ok") else answer


def _read(read: Callable[[Reply], V], kept: Kept) -> Answer[V]:
    """Return what a reply says. No reply and no fault of a reader may stop the other questions."""
    if kept.reply.refusal:
        return Answer("refused", detail=_short(kept.reply.refusal), usage=kept.usage)
    try:
        return Answer("ok", read(kept.reply), usage=kept.usage)
    except UnparsableError as error:
        return Answer("unparsable", detail=_short(str(error)), usage=kept.usage)
    except Exception as error:
        return Answer("failed", detail=_short(f"the answer cannot be read: {_described(error)}"), usage=kept.usage)


class _Endpoint(Generic[V]):
    """The state of one `ask_all`: the client, the cache, the budget and the limit on concurrent requests."""

    def __init__(
        self,
        read: Callable[[Reply], V],
        options: EndpointOptions,
        parameters: Mapping[str, object],
        client: AsyncOpenAI,
        cache: AnswerCache,
        account: str,
    ):
        self.read = read
        self.options = options
        self.parameters = dict(parameters)
        self.client = client
        self.cache = cache
        self.account = account
        self.secrets = secrets_of(options.key_env)
        self.price = price_of(options.model, options.price)
        self.purse = Purse()
        self.slots = asyncio.Semaphore(options.concurrency)
        self.hopeless = ""  # the reason why no further question is asked, "" if there is none

    async def answer(self, cache_key: str, ask: Ask) -> Answer[V]:
        """Return the answer to a question, from the cache if it is there."""
        known = _known(self.cache, cache_key, self.read, self.options)
        if known is None:
            async with self.slots:  # another process may have asked it in the meantime
                known = _known(self.cache, cache_key, self.read, self.options)
                return known or await self._ask_until_whole(cache_key, ask)
        return known

    async def _ask_until_whole(self, cache_key: str, ask: Ask) -> Answer[V]:
        """Ask, and retry malformed responses at increasing intervals."""
        for attempt in range(self.options.max_retries + 1):
            if self.hopeless:
                return Answer("failed", detail=self.hopeless)
            try:
                return await self._ask_within_budget(cache_key, ask)
            except SpoiltError as spoilt:
                failed: Answer[V] = Answer("failed", detail=self._short(spoilt))
            if attempt < self.options.max_retries:
                await asyncio.sleep(min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * (1 - random.random() / 4))
        return failed

    async def _ask_within_budget(self, cache_key: str, ask: Ask) -> Answer[V]:
        most = bound_on(ask.messages, self.parameters.get("max_completion_tokens"), self.price)
        account, budget = self.account, self.options.budget_usd
        entry = await self.purse.take(lambda: self.cache.set_aside(account, self.options.model, most, budget))
        if entry is None:
            self.hopeless = f"not asked: budget_usd of {budget:g} is spent"
            if held := self.cache.spent(account, unanswered_only=True):
                self.hopeless += f" or set aside ({held:.2g} USD for requests of other or interrupted processes)"
            return Answer("failed", detail=self.hopeless)
        try:
            return await self._ask(cache_key, ask, entry, most)
        finally:
            await self.purse.done()

    async def _ask(self, cache_key: str, ask: Ask, entry: int, most: Usage) -> Answer[V]:
        """Ask once, keep the reply, book its cost and read it. Raises `SpoiltError` for a malformed response."""
        try:
            completion = parsed((await self._post(ask)).content)
        except Exception as error:  # the client can raise anything; no error may stop the other questions
            self.cache.release(entry)
            if isinstance(error, SpoiltError):
                raise
            return self._failure(error)
        usage = usage_in(completion, self.price) or most
        try:
            kept = Kept(Reply(first_choice(completion)).only_what_is_read(self._clean), usage)
        except SpoiltError:
            self.cache.book(entry, usage)
            raise
        served_by = completion.get("model")
        self.cache.keep(cache_key, kept, self._short(served_by if isinstance(served_by, str) else ""), entry)
        return _read(self.read, kept)

    async def _post(self, ask: Ask) -> httpx2.Response:
        """Return the client's raw response, whose content is checked here."""
        import httpx2

        body = {**self.parameters, "messages": list(ask.messages)}
        try:
            return await self.client.post("/chat/completions", cast_to=httpx2.Response, body=body)
        except Exception as error:
            if self._refuses_logprobs(error, body):
                return await self._post(ask)
            raise

    def _refuses_logprobs(self, error: Exception, body: Mapping) -> bool:
        """Return whether the request was rejected because of logprobs; if so, later requests do without them."""
        refused = getattr(error, "status_code", None) in FORBIDDEN_STATUS and "logprob" in _described(error).lower()
        if refused:
            self.parameters = {name: value for name, value in self.parameters.items() if name not in OPTIONAL}
        return refused and any(name in body for name in OPTIONAL)

    def _failure(self, error: Exception) -> Answer:
        name = type(error).__name__
        if getattr(error, "code", None) in REFUSAL_CODES:
            return Answer("refused", detail=self._short(f"{name}: {_described(error)}"))
        status = getattr(error, "status_code", None)
        if status in HOPELESS:  # its message is not repeated, because endpoints quote part of the key in it
            self.hopeless = f"{name}: {HOPELESS[status]}"
            return Answer("failed", detail=self.hopeless)
        cause = f" ({type(error.__cause__).__name__}: {_described(error.__cause__)})" if error.__cause__ else ""
        return Answer("failed", detail=self._short(f"{name}: {_described(error)}{cause}"))

    def _short(self, text: object) -> str:
        return _short(self._clean(_described(text)))

    def _clean(self, text: str) -> str:
        """Return text without secrets and without what no file can hold (half of a surrogate pair)."""
        return without(self.secrets, text.encode("utf-8", "replace").decode())


def _described(error: object) -> str:
    """Return an error as text, also where that fails, as for a message that is nested too deeply."""
    try:
        return str(error)
    except RecursionError:
        return "its message cannot be shown"


def _short(text: str) -> str:
    return one_line(text)[:LONGEST_DETAIL]
