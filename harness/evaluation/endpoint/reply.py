"""Untrusted chat completions from an endpoint, and the errors for malformed ones and for those without a verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Reply:
    """An endpoint's reply: the first choice as untrusted JSON, and its fields if they have the right type."""

    choice: Mapping

    @property
    def text(self) -> str:
        """The message's text, or "" if there is none."""
        text = self._message.get("content")
        return text if isinstance(text, str) else ""

    @property
    def finish_reason(self) -> str:
        """Why the answer ended: "stop", "length" (cut off), ..."""
        return str(self.choice.get("finish_reason"))

    @property
    def refusal(self) -> str:
        """The model's or the endpoint's refusal, or "" if there is none."""
        refusal = self._message.get("refusal")
        return str(refusal) if refusal else "content filter" if self.finish_reason == "content_filter" else ""

    @cached_property
    def tokens(self) -> list[tuple[str, dict[str, float]]]:
        """The answer's tokens, each with the log-probs of its most likely alternatives; empty without log-probs."""
        logprobs = self.choice.get("logprobs")
        content = logprobs.get("content") if isinstance(logprobs, dict) else None
        try:
            return [
                (str(token["token"]), {str(top["token"]): float(top["logprob"]) for top in token["top_logprobs"]})
                for token in content or []
            ]
        except (AttributeError, KeyError, TypeError, ValueError):
            return []

    @property
    def _message(self) -> Mapping:
        message = self.choice.get("message")
        return message if isinstance(message, dict) else {}


class UnparsableError(Exception):
    """Raised by a reader for an answer without a verdict. The message says why."""


class SpoiltError(Exception):
    """A malformed response, not a chat completion; a retry may succeed."""


def parsed(content: bytes) -> dict:
    """Return a response's body as a JSON object. Raises `SpoiltError` for anything else."""
    try:
        completion = json.loads(content)
    except ValueError:
        raise SpoiltError("the endpoint's answer is not JSON") from None
    if not isinstance(completion, dict):
        raise SpoiltError("the endpoint's answer is not a chat completion")
    return completion


def first_choice(completion: Mapping) -> Mapping:
    """Return the first choice of a chat completion. Raises `SpoiltError` if there is none."""
    choices = completion.get("choices")
    if not isinstance(choices, list):
        raise SpoiltError("the endpoint's answer is not a chat completion")
    if not choices or not isinstance(choices[0], dict):
        raise SpoiltError("the answer has no choices")
    return choices[0]
