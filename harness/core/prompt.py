"""Prompts: the turns of a dialogue, and their text for readers, embeddings and keys."""

from __future__ import annotations

from dataclasses import dataclass

from harness.core.hashing import hash_value


@dataclass(frozen=True)
class Message:
    """One turn of a dialogue; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


Prompt = tuple[Message, ...]


def prompt_text(prompt: Prompt) -> str:
    """Return a prompt as one text, for its embedding."""
    return "\n\n".join(message.content for message in prompt)


def prompt_key(prompt: Prompt) -> str:
    """Return the sha256 hex digest of a prompt's roles and contents, with white space collapsed."""
    return hash_value([[turn.role, " ".join(turn.content.split())] for turn in prompt])


def readable_prompt(prompt: Prompt) -> str:
    """Return a prompt as text: a single user turn unchanged, a dialogue with the speaker before each turn."""
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in prompt)
