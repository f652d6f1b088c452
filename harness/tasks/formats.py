"""The standard preference formats: what a row says, as a prompt with completions.

Accepted are `prompt`/`chosen`/`rejected` (with scores: `score_chosen` and `score_rejected`, as in UltraFeedback
binarized), unpaired `prompt`/`completion`/`label`, and for listwise losses `prompt`/`responses` (a list of `text` and
`score`) or UltraFeedback's own `instruction`/`completions`. A prompt is text (one user turn, or a dialogue in
Anthropic's format) or a list of messages; a completion is text or messages. Where there is no `prompt`, chosen and
rejected are whole conversations that share all but their last turn.

What is wrong in kind (a missing column, a number for a text) is a `UserError` with the row's place. What real data
sets contain now and then (an empty completion, prompts that differ) raises `Dropped`, and is counted.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from harness.core.errors import UserError
from harness.core.prompt import Message, Prompt, prompt_key
from harness.tasks.base import Preference, Scored
from harness.tasks.rows import Row

ACCEPTED = "prompt/chosen/rejected, prompt/completion/label, prompt/responses, or instruction/completions"
SCORES = ("score_chosen", "score_rejected")
ROLES = ("system", "user", "assistant")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")  # "Human:" elsewhere in a line is text


class Dropped(Exception):
    """A row that cannot be used; the message is the reason under which it is counted."""


@dataclass(frozen=True)
class Record:
    """What one row says: a prompt, a preference if it has a label, a baseline if it has one, its split if known."""

    prompt: Prompt
    preference: Preference | None
    baseline: str | None
    split: str | None

    @cached_property
    def key(self) -> str:
        """The prompt's `prompt_key`."""
        return prompt_key(self.prompt)

    @cached_property
    def opening_key(self) -> str:
        """The `prompt_key` of how the dialogue opens: up to the first user turn."""
        first = next((i for i, turn in enumerate(self.prompt) if turn.role == "user"), len(self.prompt) - 1)
        return self.key if first == len(self.prompt) - 1 else prompt_key(self.prompt[: first + 1])


def parse_standard(row: Row) -> Record:
    """Return the record of a row in one of the standard formats. The baseline is the chosen or desirable completion."""
    has = {column for column, value in row.values.items() if value is not None}
    if "completions" in has:
        return _listed(row, "instruction", "completions", "response", _ultrafeedback_score)
    if "responses" in has:
        return _listed(row, "prompt", "responses", "text", lambda response, where: _number(response, "score", where))
    given = prompt_in(row) if row.get("prompt") is not None else None
    if has & {"completion", "label"} and not has & {"chosen", "rejected"}:
        return _unpaired(row, given)
    prompt, chosen = _completion(row, "chosen", given)
    other_prompt, rejected = _completion(row, "rejected", given)
    if prompt != other_prompt:
        raise Dropped("chosen and rejected have different prompts")
    scores = tuple(_number(row.values, column, row.where) for column in SCORES) if has & set(SCORES) else ()
    return paired_record(prompt, chosen, rejected, baseline=chosen.strip(), split=row.split, scores=scores)


def paired_record(
    prompt: Prompt, chosen: str, rejected: str, *, baseline: str | None, split: str | None, scores: tuple = ()
) -> Record:
    """Return the record of a pair, `scores` being those of the two; drops one that expresses no preference."""
    if not chosen.strip() or not rejected.strip():
        raise Dropped("empty completion")
    if chosen.strip() == rejected.strip():
        raise Dropped("chosen and rejected are the same")
    if scores and not scores[0] > scores[1]:
        raise Dropped("chosen does not score above rejected")
    return Record(prompt, Preference(prompt, chosen.strip(), rejected.strip(), *scores), baseline, split)


def text_in(row: Row, column: str, accepted: str = ACCEPTED) -> str:
    """Return a column's text; raise `UserError` if there is none or it is not text."""
    value = present(row, column, accepted)
    if not isinstance(value, str):
        raise UserError(f"{row.where}: column {column!r} must be text, got {_kind(value)}")
    return checked_text(value, f"{row.where}: column {column!r}")


def checked_text(value: str, where: str) -> str:
    """Return text that can be encoded; a lone half of a surrogate pair would stop the tokenizer much later."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} holds a broken character (a lone surrogate) at position {error.start}") from None
    return value


def present(row: Row, column: str, accepted: str = ACCEPTED) -> object:
    """Return a column's value, or raise `UserError` that names the columns there are, the nearest, and the accepted."""
    value = row.get(column)
    if value is None:
        if column in row.values:
            raise UserError(f"{row.where}: column {column!r} is null; accepted: {accepted}")
        close = difflib.get_close_matches(column, map(str, row.values), n=1, cutoff=0.6)
        hint = f" (is {close[0]!r} meant?)" if close else ""
        columns = ", ".join(map(str, row.values)) or "none"
        raise UserError(f"{row.where}: no column {column!r}{hint}; columns here: {columns}; accepted: {accepted}")
    return value


def parse_dialogue(text: str) -> Prompt:
    """Parse Anthropic's format ("\\n\\nHuman: ... \\n\\nAssistant: ...") into turns that alternate, the user's first.

    A marker that follows a turn of the same speaker is text that the speaker wrote: in Anthropic's data one sample of
    a model is one turn, and models wrote such lines. Drops text that opens with no user turn.
    """
    before, *parts = TURN.split(text)
    turns: list[Message] = []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        role = SPEAKERS[speaker]
        if turns and turns[-1].role == role:
            turns[-1] = Message(role, f"{turns[-1].content}\n\n{speaker}:{content}")
        else:
            turns.append(Message(role, content))
    if before.strip() or not turns or turns[0].role != "user":
        raise Dropped("not a dialogue that a human opens")
    return tuple(Message(turn.role, turn.content.strip()) for turn in turns)


def prompt_in(row: Row, column: str = "prompt") -> Prompt:
    """Return the prompt in a column: text or a list of messages. Raises `UserError` or `Dropped`."""
    value = row.get(column)
    if isinstance(value, list):
        prompt = _messages(value, f"{row.where}: column {column!r}")
    else:
        text = text_in(row, column)
        # In Anthropic's format a prompt ends with the marker behind which the assistant is to speak.
        if TURN.match(text) and text.rstrip().endswith("\n\nAssistant:"):
            prompt = parse_dialogue(text.rstrip().removesuffix("Assistant:"))
        else:
            prompt = (Message("user", text),)
    return _checked_prompt(prompt)


def _checked_prompt(prompt: Prompt) -> Prompt:
    if not prompt or prompt[-1].role != "user":
        raise Dropped("prompt does not end with a user turn")
    if any(not turn.content.strip() for turn in prompt):
        raise Dropped("empty turn in the prompt")
    return prompt


def _completion(row: Row, column: str, prompt: Prompt | None) -> tuple[Prompt, str]:
    """Return a completion with its prompt, which is `prompt` unless the column holds a whole conversation."""
    value = present(row, column)
    if isinstance(value, list):
        turns = _messages(value, f"{row.where}: column {column!r}")
    else:
        text = text_in(row, column)
        if prompt is not None:
            return prompt, text
        if not TURN.match(text):
            present(row, "prompt", f"{ACCEPTED}; without prompt, whole conversations")
        turns = parse_dialogue(text)
    if prompt is not None and _same(turns[: len(prompt)], prompt):
        turns = turns[len(prompt) :]
    if not turns or turns[-1].role != "assistant":
        raise Dropped("last turn is not the assistant's")
    if prompt is None:
        return _checked_prompt(turns[:-1]), turns[-1].content
    if len(turns) > 1:
        raise Dropped("completion is more than one turn beyond the prompt")
    return prompt, turns[-1].content


def _same(turns: Prompt, prompt: Prompt) -> bool:
    return [(t.role, t.content.strip()) for t in turns] == [(t.role, t.content.strip()) for t in prompt]


def _unpaired(row: Row, given: Prompt | None) -> Record:
    label = present(row, "label")
    if not isinstance(label, (bool, int)) or label not in (0, 1):
        raise UserError(f"{row.where}: column 'label' must be true (desirable) or false, got {label!r}")
    prompt, completion = _completion(row, "completion", given)
    completion = completion.strip()
    if not completion:
        raise Dropped("empty completion")
    sides = (completion, None) if label else (None, completion)
    return Record(prompt, Preference(prompt, *sides), completion if label else None, row.split)


def _listed(row: Row, question: str, column: str, text: str, score: Callable[[Mapping, str], float | None]) -> Record:
    """Return a record of which the best response is chosen, the worst rejected, and the rest are others.

    Empty responses, repeated ones and those without a score are left out. Of responses with one score the first in
    the row counts as the better.
    """
    prompt = prompt_in(row, question)
    responses = present(row, column)
    if not isinstance(responses, list):
        raise UserError(f"{row.where}: column {column!r} must be a list of objects, got {_kind(responses)}")
    found: dict[str, Scored] = {}
    for number, response in enumerate(responses, 1):
        where = f"{row.where}: column {column!r}: response {number}"
        if not isinstance(response, dict) or not isinstance(response.get(text), str):
            raise UserError(f"{where} must be an object with {text!r} (text) and its score, got {_kind(response)}")
        content, value = checked_text(response[text], where).strip(), score(response, where)
        if content and value is not None:
            found.setdefault(content, Scored(content, value))
    ranked = sorted(found.values(), key=lambda response: -response.score)
    if len(ranked) < 2:
        raise Dropped("fewer than two responses with a score")
    best, *others, worst = ranked
    if best.score == worst.score:
        raise Dropped("all responses score alike")
    preference = Preference(prompt, best.text, worst.text, best.score, worst.score, tuple(others))
    return Record(prompt, preference, best.text, row.split)


def _ultrafeedback_score(completion: Mapping, where: str) -> float | None:
    """Return GPT-4's overall score, or else the mean of its ratings of single aspects; None where it gave neither."""
    for column in ("overall_score", "fine-grained_score"):
        if completion.get(column) is not None:
            return _number(completion, column, where)
    aspects = completion.get("annotations")
    ratings = [a.get("Rating") for a in aspects.values() if isinstance(a, dict)] if isinstance(aspects, dict) else []
    given = [float(rating) for rating in ratings if str(rating).isdecimal()]  # text in the data; "N/A" is none
    return sum(given) / len(given) if given else None


def _number(values: Mapping, column: str, where: str) -> float:
    value = values.get(column)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{where}: {column!r} must be a finite number, got {value!r:.40}")
    return float(value)


def _messages(value: Iterable[object], where: str) -> Prompt:
    turns = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise UserError(
                f"{where}: message {number} must be an object with 'role' and 'content', got {_kind(message)}"
            )
        if message["role"] not in ROLES:
            raise UserError(f"{where}: message {number} has the role {message['role']!r}; accepted: {', '.join(ROLES)}")
        if not isinstance(message["content"], str):
            raise UserError(f"{where}: message {number}: 'content' must be text, got {_kind(message['content'])}")
        turns.append(Message(message["role"], checked_text(message["content"], f"{where}: message {number}")))
    return tuple(turns)


def _kind(value: object) -> str:
    names = {list: "a list", bool: "true or false", int: "a number", float: "a number", str: "text"}
    if isinstance(value, dict):
        return f"an object with {', '.join(map(repr, value)) or 'nothing'}"
    return "null" if value is None else names.get(type(value), type(value).__name__)
