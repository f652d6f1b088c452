"""The standard preference formats: what a row says, as a prompt with completions.

Accepted are `prompt`/`chosen`/`rejected` and, unpaired, `prompt`/`completion`/`label`. A prompt is text (one user
turn, or a dialogue in Anthropic's format) or a list of messages; a completion is text or messages. Where there is no
`prompt`, chosen and rejected are whole conversations that share all but their last turn.

What is wrong in kind (a missing column, a number for a text) is a `UserError` with the row's place. What real data
sets contain now and then (an empty completion, prompts that differ) raises `Dropped`, and is counted.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from harness.errors import UserError
from harness.hashing import hash_value
from harness.tasks.base import Message, Preference, Prompt
from harness.tasks.sources import Row

ACCEPTED = "prompt/chosen/rejected, or prompt/completion/label"
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


def prompt_key(prompt: Prompt) -> str:
    """Return the sha256 hex digest of a prompt's canonical text: roles and contents, white space collapsed."""
    return hash_value([[turn.role, " ".join(turn.content.split())] for turn in prompt])


def parse_standard(row: Row) -> Record:
    """Return the record of a row in one of the standard formats. The baseline is the chosen or desirable completion."""
    given = _prompt(row) if row.get("prompt") is not None else None
    has = {column for column, value in row.values.items() if value is not None}
    if has & {"completion", "label"} and not has & {"chosen", "rejected"}:
        return _unpaired(row, given)
    prompt, chosen = _completion(row, "chosen", given)
    other_prompt, rejected = _completion(row, "rejected", given)
    if prompt != other_prompt:
        raise Dropped("chosen and rejected have different prompts")
    return paired_record(prompt, chosen, rejected, baseline=chosen.strip(), split=row.split)


def paired_record(prompt: Prompt, chosen: str, rejected: str, *, baseline: str | None, split: str | None) -> Record:
    """Return the record of a pair; drops one that expresses no preference."""
    if not chosen.strip() or not rejected.strip():
        raise Dropped("empty completion")
    if chosen.strip() == rejected.strip():
        raise Dropped("chosen and rejected are the same")
    return Record(prompt, Preference(prompt, chosen.strip(), rejected.strip()), baseline, split)


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


def _prompt(row: Row) -> Prompt:
    value = row.get("prompt")
    if isinstance(value, list):
        prompt = _messages(value, f"{row.where}: column 'prompt'")
    else:
        text = text_in(row, "prompt")
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
