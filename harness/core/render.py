"""Renders prompts and completions as token ids; the only place that does so, for both training and sampling."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from harness.core.errors import UserError
from harness.core.prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The format of the RPO paper's code, for tokenizers without a chat template.
ROLE_TAGS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
SENTINEL = "harness-sentinel"


def control_words(tokenizer: PreTrainedTokenizerBase) -> re.Pattern:
    """Return a pattern that matches the strings which the tokenizer turns into control tokens."""
    words = {str(t) for t in tokenizer.all_special_tokens}
    words |= {str(t) for t in tokenizer.added_tokens_decoder.values()}
    return re.compile("|".join(map(re.escape, sorted(filter(str.strip, words), key=len, reverse=True))) or r"(?!)")


def harmless(text: str, control: re.Pattern) -> str:
    """Return untrusted text with every control token broken up by a space, so that it cannot end or start a turn."""
    return control.sub(lambda match: f"{match.group()[0]} {match.group()[1:]}", text)


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt's token ids, up to where the assistant's turn begins; `truncated` is whether content was cut."""

    ids: tuple[int, ...]
    truncated: bool


class Renderer:
    """Turns messages into token ids with the tokenizer's chat template or, without one, in RPO's format.

    Prompt and completion are tokenised separately, so no token spans their boundary, and the policy is trained on
    exactly the prompt ids that it continues in sampling. Raises `UserError` for a tokenizer without an EOS token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token; choose another model"
            )

    @cached_property
    def end_of_turn(self) -> int:
        """The token that ends an assistant's turn: the one the chat template puts after it, else EOS."""
        if not self.tokenizer.chat_template:
            return self.tokenizer.eos_token_id
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": SENTINEL}]
        rendered = str(self.tokenizer.apply_chat_template(turns, tokenize=False))
        tail = self.tokenizer(rendered.split(SENTINEL, 1)[-1], add_special_tokens=False)["input_ids"]
        specials = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        return next((token for token in tail if token in specials), self.tokenizer.eos_token_id)

    @cached_property
    def _control(self) -> re.Pattern:
        return control_words(self.tokenizer)

    def _harmless(self, text: str) -> str:
        return harmless(text, self._control)

    @property
    def stop_tokens(self) -> list[int]:
        """The tokens at which sampling stops."""
        return sorted({self.end_of_turn, self.tokenizer.eos_token_id})

    @property
    def pad_token(self) -> int:
        """The id used for padding. Padding is always masked by length, so it may equal EOS."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def prompt(self, prompt: Prompt, *, limit: int, keep: str, suffix: str = "") -> RenderedPrompt:
        """Render one prompt (see `prompts`)."""
        return self.prompts([prompt], limit=limit, keep=keep, suffix=suffix)[0]

    def prompts(self, prompts: Sequence[Prompt], *, limit: int, keep: str, suffix: str = "") -> list[RenderedPrompt]:
        """Render prompts into at most `limit` tokens each, up to where the assistant's turn begins.

        A longer prompt loses content, never structure: first whole turns, oldest first, then tokens of the one turn
        that is left, from its start (`keep="end"`) or its end (`keep="start"`). `suffix` is appended to the last
        turn's content and is never cut. Raises `UserError` if nothing fits.
        """
        return [
            RenderedPrompt(ids, truncated=False)
            if len(ids) <= limit
            else RenderedPrompt(self._shortened(prompt, ids, limit, keep, suffix), truncated=True)
            for prompt, ids in zip(prompts, self._prompt_ids(prompts, suffix), strict=True)
        ]

    def _shortened(self, prompt: Prompt, ids: tuple[int, ...], limit: int, keep: str, suffix: str) -> tuple[int, ...]:
        while len(prompt) > 1 and len(ids) > limit:
            prompt = _without_oldest_turn(prompt)
            (ids,) = self._prompt_ids([prompt], suffix)
        content = self.tokenizer(prompt[-1].content, add_special_tokens=False)["input_ids"]
        while len(ids) > limit:
            kept = len(content) - max(1, len(ids) - limit)
            if kept < 1:
                raise UserError(
                    f"max_prompt_tokens={limit} leaves no room for a prompt: "
                    f"its template alone takes {len(ids) - len(content)} tokens"
                )
            content = content[:kept] if keep == "start" else content[-kept:]
            text = str(self.tokenizer.decode(content, skip_special_tokens=True)).strip()
            (ids,) = self._prompt_ids([(*prompt[:-1], replace(prompt[-1], content=text))], suffix)
        return ids

    def completion(self, text: str, *, limit: int) -> tuple[tuple[int, ...], bool]:
        """Return one completion's ids and whether it was truncated (see `completions`)."""
        return self.completions([text], limit=limit)[0]

    def completions(self, texts: Sequence[str], *, limit: int) -> list[tuple[tuple[int, ...], bool]]:
        """Return the ids of completions, each with whether it was truncated.

        A complete one ends with the end-of-turn token, which is trained on; a truncated one does not, so that the
        policy does not learn to stop in the middle of a sentence.
        """
        ended = [(*ids, self.end_of_turn) for ids in self._ids([self._harmless(text.strip()) for text in texts])]
        return [(ids, False) if len(ids) <= limit else (ids[:limit], True) for ids in ended]

    def decode(self, ids: Sequence[int]) -> str:
        """Return a sampled completion as text, without special tokens and surrounding white space."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _prompt_ids(self, prompts: Sequence[Prompt], suffix: str) -> list[tuple[int, ...]]:
        ids = self._ids([self._prompt_text(prompt, suffix) for prompt in prompts])
        bos = self.tokenizer.bos_token_id
        if self.tokenizer.chat_template or bos is None:
            return ids
        return [each if each[:1] == (bos,) else (bos, *each) for each in ids]  # one, whoever adds it

    def _prompt_text(self, prompt: Prompt, suffix: str) -> str:
        messages = [replace(m, content=self._harmless(m.content)) for m in prompt]
        messages[-1] = replace(messages[-1], content=messages[-1].content + suffix)
        if not self.tokenizer.chat_template:
            text = "\n".join(f"{ROLE_TAGS[m.role]}\n{m.content}" for m in messages)
            return f"{text}\n{ROLE_TAGS['assistant']}\n"
        try:
            turns = [{"role": m.role, "content": m.content} for m in messages]
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # templates raise arbitrary errors for roles they do not know
            roles = ", ".join(m.role for m in messages)
            raise UserError(f"the chat template refuses a prompt with the turns {roles}: {error}") from None

    def _ids(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Tokenise texts. Several at once are divided among the machine's cores by the tokenizer itself."""
        if not texts:
            return []
        return [tuple(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def _without_oldest_turn(prompt: Prompt) -> Prompt:
    """Drop the oldest exchange, up to the next user turn; the system message is dropped last."""
    system, turns = (prompt[:1], prompt[1:]) if prompt[0].role == "system" else ((), prompt)
    if len(turns) == 1:
        return turns
    turns = turns[1:]
    while len(turns) > 1 and turns[0].role != "user":
        turns = turns[1:]
    return (*system, *turns)
