"""The settings of an endpoint and of its requests, shared by every judge behind an endpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from harness.core.dials import dial
from harness.core.errors import UserError
from harness.evaluation.endpoint.money import check_money

OPENAI_URL = "https://api.openai.com/v1"
RESERVED = ("messages", "model", "n", "stream")  # request fields that options may not set
SHORTEST_SECRET = 8  # characters; a shorter "key" is a dummy for a server without keys, and may occur in ordinary text


@dataclass
class EndpointOptions:
    """An OpenAI-compatible chat endpoint, as configured in an experiment file."""

    model: str
    base_url: str = ""  # "": $OPENAI_BASE_URL, else OpenAI's
    # The others affect how an answer is obtained, but not its content.
    key_env: str = dial("OPENAI_API_KEY", numeric=False)  # the variable with the key; any word for a server without
    concurrency: int = dial(16, at_least=1, numeric=False)  # concurrent requests
    requests_per_minute: float | None = dial(None, above=0, numeric=False)  # null: no limit; retries count too
    # A request counts as a quarter of its bytes; null: no limit.
    tokens_per_minute: float | None = dial(None, above=0, numeric=False)
    timeout: float = dial(60.0, above=0, numeric=False)  # seconds for one attempt
    # After a timeout, a lost connection, status 408, 409, 429 or 5xx, or a malformed response.
    max_retries: int = dial(6, at_least=0, numeric=False)
    # USD per million tokens: {input: ..., output: ...}
    price: dict[str, float] = dial({}, at_least=0, numeric=False)
    # The limit of this experiment's spending on this judge, over all runs.
    budget_usd: float | None = dial(None, above=0, numeric=False)


def check_endpoint(options: EndpointOptions, answer_tokens: int | None) -> None:
    """Raise `UserError` for an invalid URL, price or budget. Planning needs no key, which `check_key` checks.

    `answer_tokens` is the limit on an answer's length, or None without a limit.
    """
    if options.base_url and not _is_url(options.base_url):
        raise UserError(
            f"judge.base_url {options.base_url!r} is not of the form http://host:port/v1 "
            "(a name and password in it would be written down)"
        )
    check_money(options.model, options.price, options.budget_usd, answer_tokens)


def check_request(name: str, fields: Mapping[str, object]) -> None:
    """Raise `UserError` if the option `name` sets a field of the request that the harness sets itself."""
    for field in RESERVED:
        if field in fields:
            raise UserError(f"judge.{name} may not set {field!r}")


def check_key(options: EndpointOptions) -> None:
    """Raise `UserError` for a missing key or one that cannot be sent."""
    read_key(options.key_env)


def url_of(options: EndpointOptions) -> str:
    """Return the endpoint's URL: from the options, else from $OPENAI_BASE_URL, else OpenAI's."""
    return (options.base_url or os.environ.get("OPENAI_BASE_URL", "").strip() or OPENAI_URL).rstrip("/") + "/"


def read_key(name: str) -> str:
    """Return the key in an environment variable. Raises `UserError`, which never quotes it, if unset or invalid."""
    key = os.environ.get(name, "").strip()
    if not key:
        raise UserError(
            f"judge: the environment variable {name} holds no key; set it"
            " (to any word if the server at judge.base_url asks for none)"
        )
    if not (key.isascii() and key.isprintable()):  # the HTTP library would quote it in its error
        raise UserError(f"judge: the key in {name} holds characters that no key has; set it again")
    return key


def without_key(text: str, key: str) -> str:
    """Return an endpoint's text with the key removed, so that it cannot get into a file."""
    return text.replace(key, "(key)") if len(key) >= SHORTEST_SECRET else text


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
        )
    except ValueError:
        return False
