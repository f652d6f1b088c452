"""A task's data as token ids for training, evaluation and sampling, with counts of truncated and dropped rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from harness.core.config import TaskConfig
from harness.core.errors import UserError
from harness.core.hashing import hash_value
from harness.core.prompt import Prompt
from harness.core.render import Renderer
from harness.tasks.base import Preference, Question, Task, TaskData
from harness.training.batch import Example


@dataclass(frozen=True)
class Tokens:
    """One prompt with one completion, as ids."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class TokenSplit:
    """The examples of one split, and the distinct sequences that they index."""

    examples: list[Example]
    sequences: list[Tokens]

    @cached_property
    def hash(self) -> str:
        """A content hash of the token sequences, the examples that index them, and the scores."""
        examples = [[e.chosen, e.rejected, e.scores, e.others] for e in self.examples]
        return hash_value([hash_sequences(self.sequences), examples])

    @property
    def paired(self) -> bool:
        """Whether every example has both a chosen and a rejected completion."""
        return all(e.chosen is not None and e.rejected is not None for e in self.examples)


@dataclass(frozen=True)
class TokenQuestions:
    """Questions to sample responses to, and the token ids of their prompts in the same order."""

    questions: list[Question]
    ids: list[tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.questions)

    @cached_property
    def hash(self) -> str:
        """A content hash of the questions' ids, baselines and prompt tokens."""
        return hash_value([[q.id, q.baseline, ids] for q, ids in zip(self.questions, self.ids, strict=True)])


@dataclass(frozen=True)
class PreparedTask:
    """A task ready for a model: tokenised and within the length limits.

    `questions` has the splits "dev" (which may be empty) and "test".
    """

    splits: dict[str, TokenSplit]  # "train" and "dev"; empty if the task trains nothing
    questions: dict[str, TokenQuestions]
    judge_fit: list[Preference]
    judge_test: list[Preference]
    labels: str
    counts: dict[str, int]


def hash_sequences(sequences: Sequence[Tokens]) -> str:
    """Return a content hash of token sequences, in their order."""
    return hash_value([[s.prompt, s.completion] for s in sequences])


def prepare_task(name: str, task: Task, data: TaskData, config: TaskConfig, renderer: Renderer) -> PreparedTask:
    """Tokenise a task's data within its length limits and take as many rows as the experiment asks for.

    Rows that are too long are truncated (prompts on the side that the task does not keep) or dropped, according to
    `config.overlong`; rows with an empty completion are dropped. All of these are counted. Raises `UserError` if no row
    is left.
    """
    build = _Builder(task, config, renderer)
    limits = {"train": config.train_pairs, "dev": config.dev_pairs} if task.trains else {}
    splits = {split: build.examples(getattr(data, split), limit, split) for split, limit in limits.items()}
    questions = {
        "dev": build.questions(data.dev_questions, config.dev_prompts, "dev"),
        "test": build.questions(data.test, config.test_prompts, "test"),
    }
    left = {**{split: len(prepared.examples) for split, prepared in splits.items()}, "test": len(questions["test"])}
    for split, count in left.items():
        if count == 0:
            raise UserError(
                f"task {name!r}: of {len(getattr(data, split))} {split} examples none is left within "
                f"max_prompt_tokens={config.max_prompt_tokens} and "
                f"max_completion_tokens={config.max_completion_tokens}; raise them, or set overlong: truncate"
            )
    for split, prepared in splits.items():
        if not prepared.paired and not task.generates:
            for side in ("chosen", "rejected"):
                if all(getattr(example, side) is None for example in prepared.examples):
                    raise UserError(
                        f"task {name!r}: of its {len(prepared.examples)} unpaired {split} examples none is {side}; "
                        "both are needed"
                    )
    return PreparedTask(
        splits=splits,
        questions=questions,
        judge_fit=data.judge_fit[: config.judge_pairs],
        judge_test=data.judge_test,
        labels=data.labels,
        counts={**data.counts, **build.counts},
    )


class _Builder:
    """Tokenises a task's rows and counts what was truncated or dropped."""

    def __init__(self, task: Task, config: TaskConfig, renderer: Renderer):
        self.task, self.config, self.renderer = task, config, renderer
        self.counts: Counter[str] = Counter()

    def examples(self, rows: Iterable[Preference], limit: int | None, split: str) -> TokenSplit:
        examples: list[Example] = []
        index: dict[Tokens, int] = {}  # a completion in two pairs is computed once
        for row in rows:
            if limit is not None and len(examples) == limit:
                break
            prompt, prompt_cut = self._prompt(row.prompt)
            sides = {
                side: text for side, text in (("chosen", row.chosen), ("rejected", row.rejected)) if text is not None
            }
            rendered = {
                side: self.renderer.completion(text, limit=self.config.max_completion_tokens)
                for side, text in sides.items()
            }
            if any(not text.strip() for text in sides.values()):
                self.counts[f"{split}: dropped, empty completion"] += 1
                continue
            if not self._fits(split, prompt_cut, any(cut for _, cut in rendered.values())):
                continue
            others = self._others(row, prompt, split)
            indices = {side: index.setdefault(Tokens(prompt, ids), len(index)) for side, (ids, _) in rendered.items()}
            examples.append(
                Example(
                    row.prompt,
                    indices.get("chosen"),
                    indices.get("rejected"),
                    row.scores[:2] + tuple(score for _, score in others),
                    tuple(index.setdefault(tokens, len(index)) for tokens, _ in others),
                )
            )
        self.counts[f"{split}: used"] = len(examples)
        if any(example.others for example in examples):
            self.counts[f"{split}: further responses used"] = sum(len(example.others) for example in examples)
        return TokenSplit(examples, list(index))

    def _others(self, row: Preference, prompt: tuple[int, ...], split: str) -> list[tuple[Tokens, float]]:
        """Return the further responses to a pair's prompt with their scores; count those truncated or dropped."""
        drop, kept = self.config.overlong == "drop", []
        for other in row.others:
            ids, cut = self.renderer.completion(other.text, limit=self.config.max_completion_tokens)
            if cut:
                self.counts[f"{split}: further response {'dropped, too long' if drop else 'truncated'}"] += 1
            if not (cut and drop):
                kept.append((Tokens(prompt, ids), other.score))
        return kept

    def questions(self, rows: Sequence[Question], limit: int | None, split: str) -> TokenQuestions:
        questions, ids = [], []
        name = "dev prompts" if split == "dev" else split  # "dev" counts the dev pairs
        for row in rows:
            if limit is not None and len(questions) == limit:
                break
            prompt, prompt_cut = self._prompt(row.prompt)
            # The policy could not write a baseline that exceeds its own limit, so the comparison would be unfair.
            baseline_cut = (
                self.task.trains and self.renderer.completion(row.baseline, limit=self.config.max_completion_tokens)[1]
            )
            if not self._fits(name, prompt_cut, baseline_cut and self.config.overlong == "drop"):
                continue
            questions.append(row)
            ids.append(prompt)
        if rows:
            self.counts[f"{name}: used"] = len(questions)
        return TokenQuestions(questions, ids)

    def _prompt(self, prompt: Prompt) -> tuple[tuple[int, ...], bool]:
        rendered = self.renderer.prompt(
            prompt, limit=self.config.max_prompt_tokens, keep=self.task.keep, suffix=self.task.prompt_suffix
        )
        return rendered.ids, rendered.truncated

    def _fits(self, split: str, prompt_cut: bool, completion_cut: bool) -> bool:
        """Count a row that is too long; return whether it is used."""
        if self.config.overlong == "drop":
            self.counts[f"{split}: dropped, too long"] += prompt_cut or completion_cut
            return not (prompt_cut or completion_cut)
        self.counts[f"{split}: prompt truncated"] += prompt_cut
        self.counts[f"{split}: completion truncated"] += completion_cut
        return True
