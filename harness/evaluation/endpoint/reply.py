"""Untrusted chat completions from an endpoint, and the errors for malformed ones and for those without a verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

MOST_ABOVE_ZERO = 0.01  # how far rounding may put a log-prob above 0
LONGEST_REASON = 40  # characters of a finish_reason


@dataclass(frozen=True)
class Reply:
    """An endpoint's reply: the first choice as untrusted JSON, and its fields if they have the right type."""

    choice: Mapping

    @property
    def text(self) -> str:
        """The message's text, or "" if there is none."""
        return _text(self._message.get("content"))

    @property
    def finish_reason(self) -> str:
        """Why the answer ended: "stop", "length" (cut off), ...; "" if that is not said."""
        return _text(self.choice.get("finish_reason"))[:LONGEST_REASON]

    @property
    def refusal(self) -> str:
        """The model's or the endpoint's refusal, or "" if there is none."""
        refusal = _text(self._message.get("refusal"))
        return refusal or ("content filter" if self.finish_reason == "content_filter" else "")

    @cached_property
    def tokens(self) -> list[tuple[str, dict[str, float]]]:
        """The answer's tokens, each with the log-probs of its most likely alternatives; empty without log-probs.

        Raises `SpoiltError` for a number that is no log-prob, such as NaN: the endpoint computes nonsense.
        """
        logprobs = self.choice.get("logprobs")
        content = logprobs.get("content") if isinstance(logprobs, dict) else None
        try:
            return [
                (_string(token["token"]), {_string(t["token"]): _logprob(t["logprob"]) for t in token["top_logprobs"]})
                for token in content or []
            ]
        except (AttributeError, KeyError, TypeError):
            return []

    def only_what_is_read(self, clean: Callable[[str], str]) -> Reply:
        """Return the reply with nothing but these fields, every text passed through `clean`; it can be written as JSON.

        If `clean` changes the answer, the log-probs are left out: their tokens spell what was removed, and no longer
        fit the text. Raises `SpoiltError` as `tokens` does.
        """
        spelled = "".join(token for token, _ in self.tokens)
        same = clean(self.text) == self.text and clean(spelled) == spelled
        content = [
            {
                "token": clean(token),
                "top_logprobs": [{"token": clean(n), "logprob": p} for n, p in alternatives.items()],
            }
            for token, alternatives in (self.tokens if same else [])
        ]
        message = {"content": clean(self.text), "refusal": clean(_text(self._message.get("refusal")))}
        return Reply({"message": message, "finish_reason": clean(self.finish_reason), "logprobs": {"content": content}})

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
    except (ValueError, RecursionError):
        raise SpoiltError("the endpoint's answer is not JSON") from None
    if not isinstance(completion, dict):
        raise SpoiltError("the endpoint's answer is not a chat completion")
    return completion


def first_choice(completion: Mapping) -> Mapping:
    """Return the first choice of a chat completion. Raises `SpoiltError` if there is none."""
    choices = completion.get("choices")
    if not isinstance(choices, list):
        error = completion.get("error")
        said = _text(error.get("message") if isinstance(error, dict) else error)
        raise SpoiltError(f"the endpoint's answer is not a chat completion{f' but an error: {said}' if said else ''}")
    if not choices or not isinstance(choices[0], dict):
        raise SpoiltError("the answer has no choices")
    return choices[0]


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _logprob(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    try:
        logprob = float(value)
    except OverflowError:
        logprob = math.inf if value > 0 else -math.inf
    if not logprob <= MOST_ABOVE_ZERO:  # NaN, too
        raise SpoiltError(f"the answer has a log-prob of {logprob:g}")
    return logprob
