"""The standard preference formats: parses a row into a prompt with completions.

Accepted columns:

- `prompt`/`chosen`/`rejected`, optionally with `score_chosen` and `score_rejected` (as in UltraFeedback binarized);
- `prompt`/`completion`/`label`, for unpaired data;
- `prompt`/`responses` (a list of `text` and `score`) or UltraFeedback's own `instruction`/`completions`, for listwise
  losses.

A prompt is text (one user turn, or a dialogue in Anthropic's format) or a list of messages, also as JSON text; a
completion is text or messages. Chosen and rejected may be whole conversations that share all but their last turn, as
they must be without `prompt`. Beside `prompt` they end with it, and an answer: what they have before it (a system turn,
for example) belongs to the prompt.

Malformed rows (a missing column, a number instead of text) raise `UserError` with the row's position. Defects that
real data sets contain (an empty completion, differing prompts) raise `Dropped`, and the row is counted.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
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
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")  # "Human:" inside a line is text
OPENING = re.compile(r"(?:\r?\n){2}(?:Human|Assistant):")  # with both line breaks it is no text
ASKED = re.compile(r"\n\nAssistant:\s*\Z")  # the marker of the assistant's next turn, with which a prompt ends
OBJECTS = re.compile(r"""\s*\[\s*\{\s*["']""")  # how a list of objects begins as text
# A list of messages as text, in JSON or not.
MESSAGES = re.compile(r"""(?s)\s*\[\s*\{\s*["'](?:role["']\s*:.*["']content|content["']\s*:.*["']role)["']\s*:""")


class Dropped(Exception):
    """Raised for a row that cannot be used; rows are counted by the message."""


@dataclass(frozen=True)
class ParsedRow:
    """The content of one row: its prompt, and its preference, baseline and split, each None if the row has none."""

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
        """The `prompt_key` of the dialogue's opening, up to the first user turn."""
        first = next((i for i, turn in enumerate(self.prompt) if turn.role == "user"), len(self.prompt) - 1)
        return self.key if first == len(self.prompt) - 1 else prompt_key(self.prompt[: first + 1])


def parse_standard(row: Row) -> ParsedRow:
    """Parse a row in a standard format. The baseline is the chosen or desirable completion.

    Raises `UserError` for a malformed row and `Dropped` for one that cannot be used.
    """
    has = {column for column, value in row.values.items() if value is not None}
    if "completions" in has:
        return _listed(row, "instruction", "completions", "response", _ultrafeedback_score)
    if "responses" in has:
        return _listed(row, "prompt", "responses", "text", lambda response, where: _number(response, "score", where))
    own_prompt = prompt_in(row) if row.get("prompt") is not None else None
    if has & {"completion", "label"} and not has & {"chosen", "rejected"}:
        return _unpaired(row, own_prompt)
    prompt, chosen = _completion(row, "chosen", own_prompt)
    other_prompt, rejected = _completion(row, "rejected", own_prompt)
    if prompt != other_prompt:
        raise Dropped("chosen and rejected have different prompts")
    scores = tuple(_number(row.values, column, row.where) for column in SCORES) if has & set(SCORES) else ()
    return paired_row(prompt, chosen, rejected, baseline=chosen.strip(), split=row.split, scores=scores)


def paired_row(
    prompt: Prompt, chosen: str, rejected: str, *, baseline: str | None, split: str | None, scores: tuple = ()
) -> ParsedRow:
    """Return a parsed pair; `scores` is () or (chosen, rejected). Raises `Dropped` without a preference."""
    if not chosen.strip() or not rejected.strip():
        raise Dropped("empty completion")
    if chosen.strip() == rejected.strip():
        raise Dropped("chosen and rejected are the same")
    if scores and not scores[0] > scores[1]:
        raise Dropped("chosen does not score above rejected")
    return ParsedRow(prompt, Preference(prompt, chosen.strip(), rejected.strip(), *scores), baseline, split)


def text_in(row: Row, column: str, accepted: str = ACCEPTED) -> str:
    """Return a column's text; raises `UserError` if it is missing or not text."""
    value = present(row, column, accepted)
    if not isinstance(value, str):
        raise UserError(f"{row.where}: column {column!r} must be text, got {_kind(value)}")
    return checked_text(value, f"{row.where}: column {column!r}")


def checked_text(value: str, where: str) -> str:
    """Return the text, or raise `UserError` for a lone surrogate, on which the tokenizer would fail much later."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} holds a broken character (a lone surrogate) at position {error.start}") from None
    return value


def present(row: Row, column: str, accepted: str = ACCEPTED) -> object:
    """Return a column's value, or raise `UserError` with the row's columns, the nearest name and the accepted ones."""
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
    """Parse Anthropic's format ("\\n\\nHuman: ... \\n\\nAssistant: ...") into alternating turns, the user's first.

    A marker that follows a turn of the same speaker is part of that turn's text: in Anthropic's data one turn is one
    sample of a model, and models wrote such lines. Line breaks may be those of Windows. Raises `Dropped` for text that
    does not start with a user turn.
    """
    turns = _turns(text)
    if not turns or turns[0].role != "user":
        raise Dropped("not a dialogue that a human opens")
    return turns


def _turns(text: str) -> Prompt:
    """Return the turns of a text in Anthropic's format; none if it does not begin with a turn."""
    before, *parts = TURN.split(text.replace("\r\n", "\n"))
    turns: list[Message] = []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        role = SPEAKERS[speaker]
        if turns and turns[-1].role == role:
            turns[-1] = Message(role, f"{turns[-1].content}\n\n{speaker}:{content}")
        else:
            turns.append(Message(role, content))
    return () if before.strip() else tuple(Message(turn.role, turn.content.strip()) for turn in turns)


def prompt_in(row: Row, column: str = "prompt") -> Prompt:
    """Return the prompt in a column: text or a list of messages. Raises `UserError` or `Dropped`."""
    value = _text_or_messages(row, column)
    if isinstance(value, tuple):
        return _checked_prompt(value)
    plain = value.replace("\r\n", "\n")
    asked = ASKED.search(plain)
    if OPENING.match(value) or (asked and TURN.search(plain, 0, asked.start())):
        return _checked_prompt(parse_dialogue(value.rstrip().removesuffix("Assistant:")))
    return _checked_prompt((Message("user", value),))


def _text_or_messages(row: Row, column: str) -> str | Prompt:
    """Return a column's text, or its messages. Raises `UserError`, and `Dropped` for messages in text but not JSON."""
    value = present(row, column)
    where = f"{row.where}: column {column!r}"
    if isinstance(value, list):
        return _messages(value, where)
    text = text_in(row, column)
    if not OBJECTS.match(text):
        return text
    try:
        objects = json.loads(text)
    except (ValueError, RecursionError):
        if MESSAGES.match(text):
            raise Dropped("messages as text that is not JSON") from None
        return text
    are_messages = all(isinstance(value, dict) and {"role", "content"} <= set(value) for value in objects)
    return _messages(objects, where) if are_messages else text


def _checked_prompt(prompt: Prompt) -> Prompt:
    if not prompt or prompt[-1].role != "user":
        raise Dropped("prompt does not end with a user turn")
    if any(not turn.content.strip() for turn in prompt):
        raise Dropped("empty turn in the prompt")
    return prompt


def _completion(row: Row, column: str, prompt: Prompt | None) -> tuple[Prompt, str]:
    """Return a completion and its prompt.

    `prompt` is what the column `prompt` holds, or None without one. A conversation in the column may have more turns
    before it, which then belong to the prompt.
    """
    turns = _text_or_messages(row, column)
    if isinstance(turns, str):
        text, turns = turns, _turns(turns)
        if prompt is None and not turns:
            present(row, "prompt", f"{ACCEPTED}; without prompt, whole conversations")
        if prompt is None and turns[0].role != "user":
            raise Dropped("not a dialogue that a human opens")
        if prompt is not None and not OPENING.match(text) and not _ends_with(turns[:-1], prompt):
            return prompt, text
    if not turns or turns[-1].role != "assistant":
        raise Dropped("last turn is not the assistant's")
    before, answer = turns[:-1], turns[-1].content
    if prompt is None:
        return _checked_prompt(before), answer
    if _ends_with(before, prompt):
        return _checked_prompt((*before[: len(before) - len(prompt)], *prompt)), answer
    if _ends_with(prompt, before):
        return prompt, answer
    raise Dropped("completion is a conversation on another prompt")


def _ends_with(turns: Prompt, last: Prompt) -> bool:
    """Whether the last of some turns are these, white space aside."""
    own, asked = ([(turn.role, turn.content.split()) for turn in part] for part in (turns, last))
    return own[len(own) - len(asked) :] == asked


def _unpaired(row: Row, own_prompt: Prompt | None) -> ParsedRow:
    label = present(row, "label")
    if not isinstance(label, (bool, int)) or label not in (0, 1):
        raise UserError(f"{row.where}: column 'label' must be true (desirable) or false, got {label!r}")
    prompt, completion = _completion(row, "completion", own_prompt)
    completion = completion.strip()
    if not completion:
        raise Dropped("empty completion")
    sides = (completion, None) if label else (None, completion)
    return ParsedRow(prompt, Preference(prompt, *sides), completion if label else None, row.split)


def _listed(
    row: Row, question: str, column: str, text: str, score: Callable[[Mapping, str], float | None]
) -> ParsedRow:
    """Return a row with the best response as chosen, the worst as rejected and the rest as others.

    Empty responses, duplicates and responses without a score are left out. Among responses with equal scores, the
    first in the row counts as better.
    """
    prompt = prompt_in(row, question)
    responses = present(row, column)
    if not isinstance(responses, list):
        raise UserError(f"{row.where}: column {column!r} must be a list of objects, got {_kind(responses)}")
    by_text: dict[str, Scored] = {}
    for number, response in enumerate(responses, 1):
        where = f"{row.where}: column {column!r}: response {number}"
        if not isinstance(response, dict) or not isinstance(response.get(text), str):
            raise UserError(f"{where} must be an object with {text!r} (text) and its score, got {_kind(response)}")
        content, value = checked_text(response[text], where).strip(), score(response, where)
        if content and value is not None:
            by_text.setdefault(content, Scored(content, value))
    ranked = sorted(by_text.values(), key=lambda response: -response.score)
    if len(ranked) < 2:
        raise Dropped("fewer than two responses with a score")
    best, *others, worst = ranked
    if best.score == worst.score:
        raise Dropped("all responses score alike")
    preference = Preference(prompt, best.text, worst.text, best.score, worst.score, tuple(others))
    return ParsedRow(prompt, preference, best.text, row.split)


def _ultrafeedback_score(completion: Mapping, where: str) -> float | None:
    """Return GPT-4's overall score, else the mean of its ratings of single aspects, else None."""
    for column in ("overall_score", "fine-grained_score"):
        if completion.get(column) is not None:
            return _number(completion, column, where)
    aspects = completion.get("annotations")
    ratings = [a.get("Rating") for a in aspects.values() if isinstance(a, dict)] if isinstance(aspects, dict) else []
    numbers = [float(rating) for rating in ratings if len(str(rating)) < 10 and str(rating).isdecimal()]  # may be "N/A"
    return sum(numbers) / len(numbers) if numbers else None


def _number(values: Mapping, column: str, where: str) -> float:
    value = values.get(column)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
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
