"""The settings of an endpoint and of its requests, shared by every judge behind an endpoint."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from harness.core.errors import UserError
from harness.evaluation.endpoint.money import check_money

OPENAI_URL = "https://api.openai.com/v1"
SHORTEST_SECRET = 8  # characters; a shorter "key" is a dummy for a server without keys, and may occur in ordinary text


@dataclass
class EndpointOptions:
    """An OpenAI-compatible chat endpoint, as configured in an experiment file."""

    model: str
    base_url: str = ""  # "": $OPENAI_BASE_URL, else OpenAI's
    key_env: str = "OPENAI_API_KEY"  # the environment variable with the key; any word for a server without keys
    concurrency: int = 16  # concurrent requests
    requests_per_minute: float | None = None  # null: no limit; retries count too
    tokens_per_minute: float | None = None  # a request counts as a quarter of its bytes; null: no limit
    timeout: float = 60.0  # seconds for one attempt
    max_retries: int = 6  # after a timeout, a lost connection, status 408, 409, 429 or 5xx, or a malformed response
    price: dict[str, float] = field(default_factory=dict)  # USD per million tokens: {input: ..., output: ...}
    budget_usd: float | None = None  # the limit of this experiment's spending on this judge, over all runs


# The settings that affect how an answer is obtained, but not its content.
TRANSPORT = (
    "key_env",
    "concurrency",
    "requests_per_minute",
    "tokens_per_minute",
    "timeout",
    "max_retries",
    "price",
    "budget_usd",
)


def check_endpoint(options: EndpointOptions, answer_tokens: int | None) -> None:
    """Raise `UserError` for invalid settings. (`check_key` checks the key, which planning does not need.)

    `answer_tokens` is the limit on an answer's length, or None without a limit.
    """
    at_least = {"concurrency": 1, "max_retries": 0}
    for name, low in at_least.items():
        if getattr(options, name) < low:
            raise UserError(f"judge.{name} must be at least {low}, got {getattr(options, name)}")
    for name in ("timeout", "requests_per_minute", "tokens_per_minute"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise UserError(f"judge.{name} must be above 0, got {value}")
    if options.base_url and not _is_url(options.base_url):
        raise UserError(
            f"judge.base_url {options.base_url!r} is not of the form http://host:port/v1 "
            "(a name and password in it would be written down)"
        )
    check_money(options.model, options.price, options.budget_usd, answer_tokens)


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
