"""The settings of an endpoint and of its requests, shared by every judge behind an endpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from harness.core.dials import dial
from harness.core.errors import UserError
from harness.core.secrets import SHORTEST_SECRET, secret_in, secrets
from harness.evaluation.endpoint.money import check_money

OPENAI_URL = "https://api.openai.com/v1"
RESERVED = ("messages", "model", "n", "stream")  # request fields that options may not set
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
PLAIN_VARIABLE = re.compile(r"[A-Z]{1,20}(_[A-Z0-9]{1,20}){1,4}")  # no key looks like that
PRINTABLE = re.compile(r"[!-~]+")  # ASCII without spaces and control characters


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
    # Pay once more for answers without a verdict (refused, unparsable), which are kept like all others.
    ask_again: bool = dial(False, numeric=False)
    # USD per million tokens: {input: ..., output: ...}
    price: dict[str, float] = dial({}, at_least=0, numeric=False)
    # The limit of this experiment's spending on this judge, over all runs.
    budget_usd: float | None = dial(None, above=0, numeric=False)


def check_endpoint(options: EndpointOptions, answer_tokens: int | None) -> None:
    """Raise `UserError` for an invalid URL, name of a key, price or budget. The key itself is for `check_key`.

    `answer_tokens` is the limit on an answer's length, or None without a limit.
    """
    source, url = ("judge.base_url", options.base_url) if options.base_url else ("$OPENAI_BASE_URL", url_of(options))
    if any(mark in url for mark in "@?#") or secret_in(url):
        raise UserError(
            f"{source} holds a name, a password, a key or a query, which would be written down; leave it at "
            "http://host:port/v1, and put the key into the variable that judge.key_env names"
        )
    if not _is_url(url):
        raise UserError(f"{source} {url!r} is not of the form http://host:port/v1")
    if not VARIABLE.fullmatch(options.key_env):
        raise UserError(
            "judge.key_env wants the name of the environment variable with the key, such as OPENAI_API_KEY, and this "
            "is no name (it is not shown, as it may be the key)"
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
        shown = name if PLAIN_VARIABLE.fullmatch(name) else "that judge.key_env names (not shown, as it may be a key)"
        raise UserError(
            f"the environment variable {shown} holds no key; set it"
            " (to any word if the server at judge.base_url asks for none)"
        )
    if not PRINTABLE.fullmatch(key) or set(key) & set("'\"\\"):  # the HTTP library would quote it in its error
        raise UserError(f"the key in {name} holds characters that no key has; set it again")
    return key


def secrets_of(key_env: str) -> list[str]:
    """Return what must not be written down from an endpoint's text: its key, unless it is too short to be one, and all
    that looks like a secret; in the order in which to remove them.
    """
    own = os.environ.get(key_env, "").strip()
    return longest_first({*secrets(), *([own] if len(own) >= SHORTEST_SECRET else [])})


def longest_first(secrets: Iterable[str]) -> list[str]:
    """Return secrets in the order in which to remove them: one may be a part of another."""
    return sorted(secrets, key=len, reverse=True)


def without(secrets: Sequence[str], text: str) -> str:
    """Return an endpoint's text with these secrets removed, so that they cannot get into a file."""
    for secret in secrets:
        text = text.replace(secret, "(key)")
    return text


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            bool(PRINTABLE.fullmatch(text))
            and parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
        )
    except ValueError:
        return False
