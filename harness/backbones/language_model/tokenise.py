"""One row of a task's data as token ids, with what was cut, respelt or dropped of it. Rows are independent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from harness.core.chat_template import Unrenderable
from harness.core.config import TaskConfig
from harness.core.errors import UserError
from harness.core.prompt import Prompt, prompt_key, readable_prompt
from harness.core.render import RenderedPrompt, Renderer
from harness.tasks.base import Preference, Question, Task, TaskData

TOO_LONG = "dropped, too long"
SAME = "dropped, chosen and rejected are the same tokens"
PROMPT_CUT, COMPLETION_CUT = "prompt truncated", "completion truncated"
PROMPT_RESPELT, COMPLETION_RESPELT = (
    f"{what} with control tokens as text, respelt" for what in ("prompt", "completion")
)
PROMPT_CHANGED = "prompt changed by the chat template"
ENDED = "completion with an end of turn of its own, left out"
SHOWN = 60  # characters of a prompt that stand for its place where that is unknown


class Dropped(Exception):
    """Raised for a row that is not used; the message is the count that it adds to."""


@dataclass(frozen=True)
class TokenRow:
    """A prompt's ids with those of its completions by side ("chosen", "rejected"), and of others with their scores.

    `counts` says what was done to the row, as numbers by what is counted.
    """

    prompt: tuple[int, ...]
    counts: Mapping[str, int]
    sides: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    others: tuple[tuple[tuple[int, ...], float], ...] = ()


@dataclass(frozen=True)
class Tokeniser:
    """Tokenises rows of a task, of which `keep`, `suffix` and `trains` are `Task`'s. It can be sent to another process.

    `places` says where prompts (by `prompt_key`) stand in their source, for errors. Its methods raise `Dropped` for a
    row that is not used, and `UserError` for a prompt that the chat template refuses.
    """

    keep: str
    suffix: str
    trains: bool
    config: TaskConfig
    renderer: Renderer
    places: Mapping[str, str]

    @classmethod
    def of(cls, task: Task, data: TaskData, config: TaskConfig, renderer: Renderer) -> Tokeniser:
        """Return the tokeniser of a task's data."""
        return cls(task.keep, task.prompt_suffix, task.trains, config, renderer, data.places)

    def example(self, row: Preference) -> TokenRow:
        """Return a row to train on, or to compute dev metrics on."""
        texts = {side: text for side, text in (("chosen", row.chosen), ("rejected", row.rejected)) if text is not None}
        if any(not self.renderer.without_end(text).strip() for text in texts.values()):
            raise Dropped("dropped, empty completion")
        prompt, counts = self._prompt(row.prompt)
        rendered = {side: self._completion(text, prompt) for side, text in texts.items()}
        cut = any(cut for _, cut in rendered.values())
        self._check_length(prompt.truncated or cut)
        sides = {side: ids for side, (ids, _) in rendered.items()}
        if row.paired and sides["chosen"] == sides["rejected"]:
            raise Dropped(f"{SAME} after truncation" if cut else SAME)
        if self.config.overlong == "truncate":
            counts[COMPLETION_CUT] = int(cut)
        if any(map(self.renderer.is_respelt, texts.values())):
            counts[COMPLETION_RESPELT] = 1
        if any(map(self._is_ended, texts.values())):
            counts[ENDED] = 1
        return TokenRow(prompt.ids, counts, sides, tuple(self._others(row, prompt, set(sides.values()), counts)))

    def question(self, row: Question) -> TokenRow:
        """Return a prompt to sample from."""
        prompt, counts = self._prompt(row.prompt)
        # The policy could not write a baseline that exceeds its own limit, so the comparison would be unfair.
        drops = self.config.overlong == "drop"
        self._check_length(prompt.truncated or (drops and self.trains and self._is_long(row.baseline, prompt)))
        return TokenRow(prompt.ids, counts)

    def as_asked(self, row: Question) -> Question:
        """Return a question whose baseline ends without an end of turn, as the policies' responses do."""
        return replace(row, baseline=self.renderer.without_end(row.baseline)) if self._is_ended(row.baseline) else row

    def as_judged(self, pair: Preference) -> Preference:
        """Return a pair as judges see it: without an end of turn that is spelt out behind a completion."""
        texts = {"chosen": pair.chosen, "rejected": pair.rejected}
        ended = {side: self.renderer.without_end(text) for side, text in texts.items() if text and self._is_ended(text)}
        return replace(pair, **ended) if ended else pair

    def _prompt(self, prompt: Prompt) -> tuple[RenderedPrompt, dict[str, int]]:
        limit = self.config.max_prompt_tokens
        try:
            rendered = self.renderer.prompt(prompt, limit=limit, keep=self.keep, suffix=self.suffix)
            changed = self.renderer.is_changed(rendered)
        except UserError as error:
            where = self.places.get(prompt_key(prompt)) or f"the prompt {readable_prompt(prompt)[:SHOWN]!r}"
            raise UserError(f"{where}: {error}") from None
        counts = {PROMPT_CUT: int(rendered.truncated)} if self.config.overlong == "truncate" else {}
        if any(self.renderer.is_respelt(turn.content) or self._is_ended(turn.content) for turn in prompt):
            counts[PROMPT_RESPELT] = 1
        if changed:
            counts[PROMPT_CHANGED] = 1
        return rendered, counts

    def _completion(self, text: str, prompt: RenderedPrompt) -> tuple[tuple[int, ...], bool]:
        try:
            return self.renderer.completion(text, limit=self.config.max_completion_tokens, after=prompt)
        except Unrenderable as reason:
            raise Dropped(f"dropped, {reason}") from None

    def _check_length(self, cut: bool) -> None:
        if cut and self.config.overlong == "drop":
            raise Dropped(TOO_LONG)

    def _is_long(self, text: str, prompt: RenderedPrompt) -> bool:
        try:
            return self._completion(text, prompt)[1]
        except Dropped:  # it is not trained on
            return False

    def _is_ended(self, text: str) -> bool:
        return self.renderer.without_end(text) != text

    def _others(
        self, row: Preference, prompt: RenderedPrompt, used: set[tuple[int, ...]], counts: dict[str, int]
    ) -> Iterator[tuple[tuple[int, ...], float]]:
        """Yield the further responses to a pair's prompt with their scores; count those truncated or dropped.

        `used` are the ids of the responses before.
        """
        for other in row.others:
            try:
                ids, cut = self._completion(other.text, prompt)
                self._check_length(cut)
                if cut and ids in used:
                    raise Dropped("dropped, the same tokens as another after truncation")
                used.add(ids)
                yield ids, other.score
                what = "truncated" if cut else ""
            except Dropped as reason:
                what = str(reason)
            if what:
                counts[f"further response {what}"] = counts.get(f"further response {what}", 0) + 1
