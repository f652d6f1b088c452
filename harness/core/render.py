"""Renders prompts and completions as token ids; the only place that does so, for both training and sampling."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

from harness.core.chat_template import ChatTemplate, Unrenderable, written_tokens
from harness.core.errors import UserError
from harness.core.prompt import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The format of the RPO paper's code, for tokenizers without a chat template.
ROLE_TAGS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
CUT_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # what a part of a character's bytes is decoded as


def control_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that structure a text: the special ones, and those that the chat template itself writes."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return special | set(tokenizer.all_special_ids) | written_tokens(tokenizer)


def control_words(tokenizer: PreTrainedTokenizerBase, control: set[int]) -> re.Pattern:
    """Return a pattern that matches the strings which the tokenizer turns into these control tokens."""
    words = {str(word).strip() for word in tokenizer.convert_ids_to_tokens(sorted(control))}
    longest_first = sorted((word for word in words if len(word) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def harmless(text: str, control: re.Pattern) -> str:
    """Return untrusted text with every control token broken up by a space, so that it cannot end or start a turn."""
    return control.sub(lambda match: f"{match.group()[0]} {match.group()[1:]}", text)


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt's token ids, up to where the assistant's turn begins; `truncated` is whether content was cut.

    `turns` are the messages as they were rendered, and `text` is their rendering.
    """

    ids: tuple[int, ...]
    truncated: bool
    turns: Prompt
    text: str


class Renderer:
    """Turns messages into token ids with the tokenizer's chat template or, without one, in RPO's format.

    No token spans the boundary of prompt and completion, and the policy is trained on exactly the prompt ids that it
    continues in sampling. Raises `UserError` for a tokenizer without an EOS token, and for a chat template by which no
    policy can be trained (see `ChatTemplate`).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token; choose another model"
            )
        control = control_ids(tokenizer)
        self.format = ChatTemplate(tokenizer, control) if tokenizer.chat_template else _RoleTags(tokenizer)
        self._control = control_words(tokenizer, control)

    @property
    def end_of_turn(self) -> int:
        """The token that ends an assistant's turn: the one the chat template puts after it, else EOS."""
        return self.format.end_of_turn

    @property
    def notes(self) -> Sequence[str]:
        """Lines for the user on how prompts and completions differ from what the chat template suggests."""
        return self.format.notes

    @cached_property
    def _ends(self) -> tuple[str, ...]:
        return tuple(filter(self._control.fullmatch, self.tokenizer.convert_ids_to_tokens(self.stop_tokens)))

    @property
    def stop_tokens(self) -> list[int]:
        """The tokens at which sampling stops."""
        return sorted({self.end_of_turn, self.tokenizer.eos_token_id})

    @property
    def pad_token(self) -> int:
        """The id used for padding. Padding is always masked by length, so it may equal EOS."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def without_end(self, text: str) -> str:
        """Return a turn's text without an end of turn that is spelt out behind it, as in data rendered before."""
        bare = text.rstrip()
        while bare.endswith(self._ends):
            bare = bare.removesuffix(next(end for end in self._ends if bare.endswith(end))).rstrip()
            text = bare
        return text

    def is_respelt(self, text: str) -> bool:
        """Whether a turn's text holds control tokens, which are broken up by a space."""
        return self._control.search(self.without_end(text)) is not None

    def is_changed(self, prompt: RenderedPrompt) -> bool:
        """Whether the chat template wrote other content than the prompt's, apart from white space.

        Raises `UserError` if it left a turn out.
        """
        return self.format.changed(prompt.turns, prompt.text)

    def prompt(self, prompt: Prompt, *, limit: int, keep: str, suffix: str = "") -> RenderedPrompt:
        """Render a prompt into at most `limit` tokens, up to where the assistant's turn begins.

        A longer prompt loses content, never structure: first whole turns, oldest first, then tokens of the one turn
        that is left, from its start (`keep="end"`) or its end (`keep="start"`). A system turn stays where the chat
        template needs one. `suffix` is appended to the last turn's content and is never cut. Raises `UserError` if
        nothing fits.
        """
        rendered = self._rendered(prompt, suffix)
        if len(rendered.ids) <= limit:
            return rendered
        while len(prompt) > (2 if self.format.needs_system else 1) and len(rendered.ids) > limit:
            prompt = _without_oldest_turn(prompt)
            rendered = self._rendered(prompt, suffix)
        content = self.tokenizer(self._harmless(prompt[-1].content), add_special_tokens=False)["input_ids"]
        while len(rendered.ids) > limit:
            kept = len(content) - max(1, len(rendered.ids) - limit)
            if kept < 1:
                raise UserError(
                    f"max_prompt_tokens={limit} leaves no room for a prompt: "
                    f"its template alone takes {len(rendered.ids) - len(content)} tokens"
                )
            content = content[:kept] if keep == "start" else content[-kept:]
            text = self.text(content, special=False).strip().strip(CUT_CHARACTER)
            rendered = self._rendered((*prompt[:-1], replace(prompt[-1], content=text)), suffix)
        return replace(rendered, truncated=True)

    def completion(self, text: str, *, limit: int, after: RenderedPrompt | None = None) -> tuple[tuple[int, ...], bool]:
        """Return a completion's ids (after a prompt, or else after a short question) and whether it was truncated.

        A complete one ends with the end-of-turn token, which is trained on; a truncated one does not, so that the
        policy does not learn to stop in the middle of a sentence. Raises `Unrenderable` for a completion that the chat
        template does not render as it is, and for one with the template's own opening of an answer (a thinking block,
        another channel), which would be there twice.
        """
        text = self.without_end(text.strip())
        opening = self._control.match(text)
        if opening and opening.group() in self.format.opening:
            raise Unrenderable(f"the completion begins with {opening.group()}, which the chat template writes itself")
        after = after or self._rendered(self.format.start, "")
        ids = self.format.answer_ids(after.turns, after.text, self._harmless(text))
        return (ids, False) if len(ids) <= limit else (ids[:limit], True)

    def decode(self, ids: Sequence[int]) -> str:
        """Return a sampled completion as text, without special tokens, end of turn and surrounding white space."""
        ids = [i for i in ids if i != self.end_of_turn]  # not all templates end a turn with a special token
        return self.text(ids, special=False).strip()

    def text(self, ids: Sequence[int], *, special: bool) -> str:
        """Return ids as text, with or without special tokens."""
        parts = []
        for is_misread, run in groupby(ids, key=self._misread.__contains__):
            if is_misread:
                parts += [self._misread[i] for i in run]
            else:
                parts.append(str(self.tokenizer.decode(list(run), skip_special_tokens=not special)))
        return "".join(parts)

    @cached_property
    def _misread(self) -> dict[int, str]:
        """Added tokens that the tokenizer decodes as other text: decoders of bytes take an added umlaut for a byte.

        Some tokenizers pad with a character such as "!", which is special then, but also part of texts.
        """
        added = self.tokenizer.added_tokens_decoder
        texts = {i: token.content for i, token in added.items() if not token.special or len(token.content) == 1}
        read = {i: str(self.tokenizer.decode([i], skip_special_tokens=True)) for i in texts}
        return {i: text for i, text in texts.items() if read[i].strip() != text.strip()}

    def _harmless(self, text: str) -> str:
        return harmless(self.without_end(text), self._control)

    def _rendered(self, prompt: Prompt, suffix: str) -> RenderedPrompt:
        turns = [replace(turn, content=self._harmless(turn.content)) for turn in prompt]
        turns[-1] = replace(turns[-1], content=turns[-1].content + suffix)
        text = self.format.prompt_text(tuple(turns))
        return RenderedPrompt(self.format.prompt_ids(text), False, tuple(turns), text)


class _RoleTags:
    """RPO's format, in the place of a `ChatTemplate`: a tag before each turn, and EOS behind the answer."""

    needs_system = False
    notes: Sequence[str] = ()
    start = (Message("user", "x"),)
    opening = ""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.end_of_turn: int = tokenizer.eos_token_id

    def prompt_text(self, turns: Prompt) -> str:
        return "\n".join(f"{ROLE_TAGS[m.role]}\n{m.content}" for m in turns) + f"\n{ROLE_TAGS['assistant']}\n"

    def prompt_ids(self, text: str) -> tuple[int, ...]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        bos = self.tokenizer.bos_token_id  # exactly one, whether or not the tokenizer adds it
        return tuple(ids) if bos is None or ids[:1] == [bos] else (bos, *ids)

    def changed(self, turns: Prompt, text: str) -> bool:
        return False

    def answer_ids(self, turns: Prompt, text: str, answer: str) -> tuple[int, ...]:
        return (*self.tokenizer(answer, add_special_tokens=False)["input_ids"], self.end_of_turn)


def _without_oldest_turn(prompt: Prompt) -> Prompt:
    """Drop the oldest exchange, up to the next user turn; the system message is dropped last."""
    system, turns = (prompt[:1], prompt[1:]) if prompt[0].role == "system" else ((), prompt)
    if len(turns) == 1:
        return turns
    turns = turns[1:]
    while len(turns) > 1 and turns[0].role != "user":
        turns = turns[1:]
    return (*system, *turns)
