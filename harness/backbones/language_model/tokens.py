"""A task's data as token ids for training, evaluation and sampling, with counts of truncated and dropped rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from typing import TypeVar

from harness.core.config import TaskConfig
from harness.core.errors import UserError
from harness.core.hashing import hash_list, hash_value
from harness.core.render import RenderedPrompt, Renderer
from harness.tasks.base import Preference, Question, Task, TaskData
from harness.training.batch import Example

T = TypeVar("T")
CHUNK = 1000  # rows that are tokenised at once
SIDES = ("chosen", "rejected")
Completed = tuple[tuple[int, ...], bool]  # a completion's ids, and whether it was truncated


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
    return hash_list([s.prompt, s.completion] for s in sequences)


def prepare_task(
    name: str,
    task: Task,
    data: TaskData,
    config: TaskConfig,
    renderer: Renderer,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PreparedTask:
    """Tokenise a task's data within its length limits and take as many rows as the experiment asks for.

    Rows that are too long are truncated (prompts on the side that the task does not keep) or dropped, according to
    `config.overlong`; rows with an empty completion are dropped. All of these are counted. Raises `UserError` if no row
    is left. `progress(done, total)` is called with numbers of rows, for data of more than a thousand.
    """
    build = _Builder(task, config, renderer, progress)
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
            for side in SIDES:
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


class SharedInts:
    """Makes tuples of ids in which equal numbers are one object, so that a token takes 8 bytes and not 36."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def tuple(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the ids as a tuple."""
        return tuple(map(self._numbers.setdefault, ids, ids))


class _Builder:
    """Tokenises a task's rows and counts what was truncated or dropped."""

    def __init__(
        self, task: Task, config: TaskConfig, renderer: Renderer, progress: Callable[[int, int], None]
    ) -> None:
        self.task, self.config, self.renderer, self.progress = task, config, renderer, progress
        self.counts: Counter[str] = Counter()
        self.shared = SharedInts()

    def examples(self, rows: Sequence[Preference], limit: int | None, split: str) -> TokenSplit:
        examples: list[Example] = []
        index: dict[Tokens, int] = {}  # a completion in two pairs is computed once
        for chunk in self._chunks(rows, limit, examples):
            for row, prompt, completions in zip(chunk, *self._rendered(chunk), strict=True):
                sides = {side: completions.pop(0) for side in SIDES if getattr(row, side) is not None}
                if any(not getattr(row, side).strip() for side in sides):
                    self.counts[f"{split}: dropped, empty completion"] += 1
                    continue
                if not self._fits(split, prompt.truncated, any(cut for _, cut in sides.values())):
                    continue
                others = self._others(row, prompt.ids, completions, split)
                indices = {
                    side: index.setdefault(Tokens(prompt.ids, ids), len(index)) for side, (ids, _) in sides.items()
                }
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

    def _others(
        self, row: Preference, prompt: tuple[int, ...], rendered: Sequence[Completed], split: str
    ) -> list[tuple[Tokens, float]]:
        """Return the further responses to a pair's prompt with their scores; count those truncated or dropped."""
        drop, kept = self.config.overlong == "drop", []
        for other, (ids, cut) in zip(row.others, rendered, strict=True):
            if cut:
                self.counts[f"{split}: further response {'dropped, too long' if drop else 'truncated'}"] += 1
            if not (cut and drop):
                kept.append((Tokens(prompt, ids), other.score))
        return kept

    def questions(self, rows: Sequence[Question], limit: int | None, split: str) -> TokenQuestions:
        questions: list[Question] = []
        ids = []
        name = "dev prompts" if split == "dev" else split  # "dev" counts the dev pairs
        for chunk in self._chunks(rows, limit, questions):
            # The policy could not write a baseline that exceeds its own limit, so the comparison would be unfair.
            baselines = self._completions([row.baseline for row in chunk if self.task.trains])
            for row, prompt in zip(chunk, self._prompts(chunk), strict=True):
                baseline_cut = bool(baselines) and baselines.pop(0)[1]
                if self._fits(name, prompt.truncated, baseline_cut and self.config.overlong == "drop"):
                    questions.append(row)
                    ids.append(prompt.ids)
        if rows:
            self.counts[f"{name}: used"] = len(questions)
        return TokenQuestions(questions, ids)

    def _chunks(self, rows: Sequence[T], limit: int | None, used: Sized) -> Iterator[Sequence[T]]:
        """Yield rows in chunks, each tokenised at once, until `limit` of them are used."""
        start = 0
        while start < len(rows) and (limit is None or len(used) < limit):
            size = CHUNK if limit is None else min(CHUNK, limit - len(used))
            yield rows[start : start + size]
            start += size
            if start >= CHUNK:  # small data take no time
                done, total = (start, len(rows)) if limit is None else (len(used), min(limit, len(rows)))
                self.progress(min(done, total), total)

    def _prompts(self, rows: Sequence[Preference] | Sequence[Question]) -> list[RenderedPrompt]:
        config, task = self.config, self.task
        prompts = [row.prompt for row in rows]
        rendered = self.renderer.prompts(
            prompts, limit=config.max_prompt_tokens, keep=task.keep, suffix=task.prompt_suffix
        )
        return [replace(prompt, ids=self.shared.tuple(prompt.ids)) for prompt in rendered]

    def _rendered(self, rows: Sequence[Preference]) -> tuple[list[RenderedPrompt], list[list[Completed]]]:
        """Return the rows' prompts, and each row's completions: chosen, rejected and the others, where they exist."""
        sides = [[text for text in (row.chosen, row.rejected) if text is not None] for row in rows]
        texts = [[*both, *(other.text for other in row.others)] for both, row in zip(sides, rows, strict=True)]
        completions = iter(self._completions(list(chain.from_iterable(texts))))
        return self._prompts(rows), [list(islice(completions, len(of_row))) for of_row in texts]

    def _completions(self, texts: Sequence[str]) -> list[Completed]:
        rendered = self.renderer.completions(texts, limit=self.config.max_completion_tokens)
        return [(self.shared.tuple(ids), cut) for ids, cut in rendered]

    def _fits(self, split: str, prompt_cut: bool, completion_cut: bool) -> bool:
        """Count a row that is too long; return whether it is used."""
        if self.config.overlong == "drop":
            self.counts[f"{split}: dropped, too long"] += prompt_cut or completion_cut
            return not (prompt_cut or completion_cut)
        self.counts[f"{split}: prompt truncated"] += prompt_cut
        self.counts[f"{split}: completion truncated"] += completion_cut
        return True
