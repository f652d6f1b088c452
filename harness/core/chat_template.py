"""A tokenizer's chat template: what it writes around the turns, learnt from dialogues that it renders.

A prompt followed by a completion is the template's own rendering of the dialogue, token by token, up to the end of the
assistant's turn. Where the template's generation prompt is not how that rendering goes on (it opens a thinking block,
or nothing at all), the prompt ends where the answer begins in the rendering; `notes` says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cached_property
from string import ascii_letters, digits
from typing import TYPE_CHECKING

from harness.core.errors import UserError, one_line
from harness.core.prompt import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Letters only, so that no marker is part of them.
SYSTEM, QUESTION, ANSWER = (Message(role, f"harness{role}probe") for role in ("system", "user", "assistant"))
STARTS = ((QUESTION,), (SYSTEM, QUESTION))
DIALOGUES = (*STARTS, *((*start, ANSWER) for start in STARTS), *((*start, ANSWER, QUESTION) for start in STARTS))
# Some templates write the date. It is the same every day here, so that prompts and keys are: Llama 3's own default.
TODAY = datetime(2024, 7, 26)
CODES = [f"%{code}" for code in (*(f"-{c}" for c in "dmHIMSjy"), *"aAbBcdDeFGHIjmMpSTuUVwWxXyY", "%")]  # of strftime
DATE = {code: TODAY.strftime(code) for code in CODES}
CALENDAR = "".join(f"|replace('{code}', '{value}')" for code, value in DATE.items())
FIXED_DATE = f"{{% macro strftime_now(form) %}}{{{{ form{CALENDAR} }}}}{{% endmacro %}}"


class Unrenderable(UserError):
    """Raised for a completion that a chat template does not render as it is; the message is the reason."""


class ChatTemplate:
    """The format of a tokenizer with a chat template.

    - `end_of_turn`: the token behind an answer, which is trained on.
    - `needs_system`: whether it refuses dialogues without a system turn.
    - `notes`: lines for the user on how prompts and completions differ from what the template suggests.

    Raises `UserError` for a template that refuses a question with an answer, leaves one of them out, or never ends the
    assistant's turn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: Iterable[int]):
        self.tokenizer = tokenizer
        self.start, self.opened, whole = _first_rendered(tokenizer)
        self.needs_system = self.start != STARTS[0]
        self.before, answered, self._after = whole.partition(ANSWER.content)
        if not answered or not all(QUESTION.content in text for text in (self.opened, self.before)):
            raise UserError(f"{self._name} leaves out or changes {'a prompt' if answered else 'an answer'}: {_MEND}")
        # Without any text of its own, a template marks no turns: the completion goes on with the prompt's text.
        self.continues = self.before == self.opened and self.opened.endswith(QUESTION.content) and not self._after
        self._control = frozenset(control)
        tail = (token for token in self._tokens(self._after) if token in self._control)
        end = tokenizer.eos_token_id if self.continues else next(tail, None)
        if end is None:
            raise UserError(
                f"{self._name} never ends the assistant's turn (after an answer it writes {self._after!r}, which holds "
                f"no special token of the tokenizer); let it write eos_token there: {_MEND}"
            )
        self.end_of_turn: int = end
        goes_on = self.before.startswith(self.opened) and not self.before[len(self.opened) :].strip()
        self._as_answered = not goes_on
        text = self.before if self._as_answered else self.opened
        # A token may hold white space together with the answer's first letter. It is the completion's.
        ids = self._tokens(text)
        apart = all(_begins(self._tokens(text + letter), ids) for letter in ascii_letters + digits)
        self._trims = not apart and not self.continues
        self._header = (text.rstrip() if self._trims else text).rpartition(QUESTION.content)[2]
        self._offered = self.opened.rpartition(QUESTION.content)[2]

    @property
    def opening(self) -> str:
        """What the template may write between a question and its answer."""
        return self._header + self._offered

    @cached_property
    def notes(self) -> list[str]:
        """See the class."""
        notes = []
        if self.continues:
            notes.append("it marks no turns: a completion goes on with the prompt's text and ends with EOS")
        if self._header != self._offered:
            notes.append(
                f"prompts end with {self._header!r}, as in its own dialogues, "
                f"not with its generation prompt {self._offered!r}"
            )
        if "strftime_now" in self.tokenizer.get_chat_template():
            notes.append("it writes the date: 26 July 2024 in each prompt, so that prompts are the same every day")
        return notes

    def prompt_text(self, turns: Prompt) -> str:
        """Return a prompt up to where the assistant's text begins. Raises `UserError` if the template refuses it."""
        if self.needs_system and turns[0].role != SYSTEM.role:
            raise UserError(
                f"{self._name} needs a system turn, and this prompt has the turns {_roles(turns)}: "
                "give each prompt one in the data (a list of messages, the first with the role system)"
            )
        if self._as_answered:
            whole = _rendered(self.tokenizer, (*turns, ANSWER))
            text, answered, _ = whole.rpartition(ANSWER.content)
            if not answered:
                raise UserError(f"{self._name} leaves out the answer after the turns {_roles(turns)}")
        else:
            text = _rendered(self.tokenizer, turns, generation_prompt=True)
        return text.rstrip() if self._trims else text

    def prompt_ids(self, text: str) -> tuple[int, ...]:
        """Return a prompt's text as ids."""
        return self._tokens(text)

    def changed(self, turns: Prompt, text: str) -> bool:
        """Whether a prompt's text has a turn with other content, apart from white space.

        Raises `UserError` if the template leaves a turn out.
        """
        changed = False
        for place, turn in enumerate(turns):
            if _holds(text, turn.content):
                continue
            probe = Message(turn.role, ANSWER.content.upper())
            if probe.content not in self.prompt_text((*turns[:place], probe, *turns[place + 1 :])):
                raise UserError(
                    f"{self._name} leaves out the {turn.role} turn of a prompt with the turns {_roles(turns)}: "
                    "take it out of the data, or choose a model whose template writes it"
                )
            changed = True
        return changed

    def answer_ids(self, turns: Prompt, text: str, answer: str) -> tuple[int, ...]:
        """Return the ids from the end of a prompt (its turns and their text) to the end of the assistant's turn.

        Raises `Unrenderable` if the template does not write the answer there, or not as it is.
        """
        if self.continues:
            return (*self._tokens(answer), self.end_of_turn)
        try:
            whole = _rendered(self.tokenizer, (*turns, Message("assistant", answer)))
        except UserError as error:
            raise Unrenderable(str(error)) from None
        if not whole.startswith(text):
            raise Unrenderable("the chat template renders the prompt otherwise with this answer behind it")
        rest = whole[len(text) :]
        if not _holds(rest, answer):
            raise Unrenderable("the chat template changes the answer")
        context = text[self._last_marker(text) :]  # tokens before a marker do not depend on what follows it
        before, ids = self._tokens(context), self._tokens(context + rest)
        if not _begins(ids, before):
            raise Unrenderable("its first token is also the end of the prompt")
        ids = ids[len(before) :]
        if self.end_of_turn not in ids:
            raise Unrenderable("the chat template does not end this answer")
        return ids[: ids.index(self.end_of_turn) + 1]

    @property
    def _name(self) -> str:
        return f"the chat template of {self.tokenizer.name_or_path!r}"

    @cached_property
    def _markers(self) -> list[str]:
        ids = {*self._tokens(self.before), *self._tokens(self.opened)}
        added = self.tokenizer.added_tokens_decoder
        return [added[i].content for i in ids & self._control & set(added) if not added[i].normalized]

    def _last_marker(self, text: str) -> int:
        return max(0, *(text.rfind(marker) for marker in self._markers)) if self._markers else 0

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])


_MEND = "mend chat_template.jinja in the model's folder, or choose another model"


def written_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the added tokens that the chat template itself writes as markers; words and punctuation are none."""
    ids: set[int] = set()
    for turns in DIALOGUES if tokenizer.chat_template else ():
        for generation_prompt in (False, True):
            try:
                text = _rendered(tokenizer, turns, generation_prompt=generation_prompt)
            except UserError:  # a template may refuse a role or an order
                continue
            ids |= set(tokenizer(text, add_special_tokens=False)["input_ids"])
    return {i for i, token in tokenizer.added_tokens_decoder.items() if i in ids and _is_marker(token.content)}


def _is_marker(word: str) -> bool:
    return not word.isalnum() and bool(re.search(r"[^\W\d_]", word))


def _first_rendered(tokenizer: PreTrainedTokenizerBase) -> tuple[Prompt, str, str]:
    """Return the first of `STARTS` that a template accepts, as a prompt and with an answer; raises its last refusal."""
    for start in STARTS:
        try:
            opened = _rendered(tokenizer, start, generation_prompt=True)
            return start, opened, _rendered(tokenizer, (*start, ANSWER))
        except UserError as error:
            refusal = error
    raise refusal


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: Prompt, *, generation_prompt: bool = False) -> str:
    """Return the template's own rendering as text; raises `UserError` if it refuses the turns."""
    try:
        template = tokenizer.get_chat_template()
        return str(
            tokenizer.apply_chat_template(
                [{"role": turn.role, "content": turn.content} for turn in turns],
                chat_template=FIXED_DATE + template if "strftime_now" in template else template,
                tokenize=False,
                add_generation_prompt=generation_prompt,
            )
        )
    except Exception as error:  # templates raise arbitrary errors for roles they do not know
        raise UserError(
            f"the chat template refuses a prompt with the turns {_roles(turns)}: {one_line(error)}; "
            "change these turns in the data, or choose another model"
        ) from None


def _roles(turns: Prompt) -> str:
    return ", ".join(turn.role for turn in turns)


def _holds(text: str, content: str) -> bool:
    """Whether a text holds a content, white space aside: many templates trim it."""
    return content in text or "".join(content.split()) in "".join(text.split())


def _begins(ids: Sequence[int], start: Sequence[int]) -> bool:
    return tuple(ids[: len(start)]) == tuple(start)
