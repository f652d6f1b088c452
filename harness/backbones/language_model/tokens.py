"""A task's data as token ids for training, evaluation and sampling, with counts of truncated and dropped rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from harness.backbones.language_model.parallel_rows import tokenised
from harness.backbones.language_model.tokenise import TOO_LONG, Dropped, Tokeniser, TokenRow
from harness.core.config import TaskConfig
from harness.core.errors import UserError
from harness.core.hashing import hash_list, hash_value
from harness.core.render import Renderer
from harness.tasks.base import Preference, Question, Task, TaskData
from harness.training.batch import Example

R = TypeVar("R", Preference, Question)
REPORTED = 1000  # rows between two reports of progress


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
class TaskTokens:
    """A task's rows as ids, with counts of what was done to them. `asked` has the questions of "dev" and "test"."""

    splits: dict[str, TokenSplit]  # "train" and "dev"; empty if the task trains nothing
    asked: dict[str, list[tuple[Question, tuple[int, ...]]]]
    counts: dict[str, int]


@dataclass(frozen=True)
class PreparedTask:
    """A task ready for a model: tokenised and within the length limits.

    `questions` has the splits "dev" (which may be empty) and "test".
    """

    splits: dict[str, TokenSplit]
    questions: dict[str, TokenQuestions]
    judge_fit: list[Preference]
    judge_test: list[Preference]
    labels: str
    counts: dict[str, int]


def hash_sequences(sequences: Sequence[Tokens]) -> str:
    """Return a content hash of token sequences, in their order."""
    return hash_list([s.prompt, s.completion] for s in sequences)


def prepare_task(name: str, task: Task, data: TaskData, config: TaskConfig, renderer: Renderer) -> PreparedTask:
    """Tokenise a task's data as `tokenise_task` does, without a store."""
    tokeniser = Tokeniser.of(task, data, config, renderer)
    return prepared_of(tokenise_task(name, task, data, config, tokeniser), data, config, tokeniser)


def prepared_of(tokens: TaskTokens, data: TaskData, config: TaskConfig, tokeniser: Tokeniser) -> PreparedTask:
    """Return a task's tokens with what judges need of its data."""
    return PreparedTask(
        splits=tokens.splits,
        questions={
            split: TokenQuestions([tokeniser.as_asked(row) for row, _ in asked], [ids for _, ids in asked])
            for split, asked in tokens.asked.items()
        },
        judge_fit=[tokeniser.as_judged(pair) for pair in data.judge_fit[: config.judge_pairs]],
        judge_test=[tokeniser.as_judged(pair) for pair in data.judge_test],
        labels=data.labels,
        counts={**data.counts, **tokens.counts},
    )


def tokenise_task(
    name: str,
    task: Task,
    data: TaskData,
    config: TaskConfig,
    tokeniser: Tokeniser,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TaskTokens:
    """Tokenise a task's data within its length limits and take as many rows as the experiment asks for.

    Rows that are too long are truncated (prompts on the side that the task does not keep) or dropped, according to
    `config.overlong`. Rows with a completion that is empty or that the chat template changes are dropped too, and so
    are pairs whose completions are the same tokens. All of these are counted. `progress(done, total)` is called
    with numbers of rows of a split. Raises `UserError` if no row is left, or for a prompt that the chat template
    refuses.
    """
    counts: Counter[str] = Counter()
    limits = {"train": config.train_pairs, "dev": config.dev_pairs} if task.trains else {}
    splits = {
        split: _split(_used(getattr(data, split), tokeniser.example, limit, split, counts, progress), split, counts)
        for split, limit in limits.items()
    }
    questions = {  # "dev" counts the dev pairs
        "dev": _used(data.dev_questions, tokeniser.question, config.dev_prompts, "dev prompts", counts, progress),
        "test": _used(data.test, tokeniser.question, config.test_prompts, "test", counts, progress),
    }
    left = {**{split: len(prepared.examples) for split, prepared in splits.items()}, "test": len(questions["test"])}
    for split, count in left.items():
        if count == 0:
            reasons = {what: n for what, n in counts.items() if what.startswith(f"{split}: dropped") and n}
            told = f" ({'; '.join(f'{what}: {n}' for what, n in reasons.items())})" if reasons else ""
            raise UserError(
                f"task {name!r}: of {len(getattr(data, split))} {split} examples none is left within "
                f"max_prompt_tokens={config.max_prompt_tokens} and "
                f"max_completion_tokens={config.max_completion_tokens}{told}; "
                + ("raise them, or set overlong: truncate" if TOO_LONG in told else "raise them, or change the data")
            )
    for split, prepared in splits.items():
        if not prepared.paired and not task.generates:
            for side in ("chosen", "rejected"):
                if all(getattr(example, side) is None for example in prepared.examples):
                    raise UserError(
                        f"task {name!r}: of its {len(prepared.examples)} unpaired {split} examples none is {side}; "
                        "both are needed"
                    )
    asked = {split: [(row, tokens.prompt) for row, tokens in rows] for split, rows in questions.items()}
    return TaskTokens(splits, asked, dict(counts))


def _used(
    rows: Sequence[R],
    tokenise: Callable[[R], TokenRow],
    limit: int | None,
    split: str,
    counts: Counter[str],
    progress: Callable[[int, int], None],
) -> list[tuple[R, TokenRow]]:
    """Return the first `limit` rows that are not dropped, as ids; add to `counts` what was done to the rows read."""
    used: list[tuple[R, TokenRow]] = []
    shared = SharedInts()
    for done, (row, tokens) in enumerate(zip(rows, tokenised(tokenise, rows, limit), strict=False)):
        if limit is not None and len(used) == limit:
            break
        if done and done % REPORTED == 0:
            progress(*((done, len(rows)) if limit is None else (len(used), limit)))
        if isinstance(tokens, Dropped):
            counts[f"{split}: {tokens}"] += 1
            continue
        counts.update({f"{split}: {what}": number for what, number in tokens.counts.items()})
        used.append((row, shared.row(tokens)))
    if rows:
        counts[f"{split}: used"] = len(used)
    return used


class SharedInts:
    """Makes tuples of ids in which equal numbers are one object, so that a token takes 8 bytes and not 36."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def tuple(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the ids as a tuple."""
        return tuple(map(self._numbers.setdefault, ids, ids))

    def row(self, row: TokenRow) -> TokenRow:
        """Return a row whose ids are such tuples."""
        sides = {side: self.tuple(ids) for side, ids in row.sides.items()}
        others = tuple((self.tuple(ids), score) for ids, score in row.others)
        return replace(row, prompt=self.tuple(row.prompt), sides=sides, others=others)


def _split(rows: Iterable[tuple[Preference, TokenRow]], split: str, counts: Counter[str]) -> TokenSplit:
    examples: list[Example] = []
    index: dict[Tokens, int] = {}  # a completion in two pairs is computed once
    for row, tokens in rows:
        completions = [*tokens.sides.values(), *(ids for ids, _ in tokens.others)]
        places = [index.setdefault(Tokens(tokens.prompt, ids), len(index)) for ids in completions]
        sides = dict(zip(tokens.sides, places, strict=False))
        scores = row.scores[:2] + tuple(score for _, score in tokens.others)
        others = tuple(places[len(sides) :])
        examples.append(Example(row.prompt, sides.get("chosen"), sides.get("rejected"), scores, others))
    if any(example.others for example in examples):
        counts[f"{split}: further responses used"] = sum(len(example.others) for example in examples)
    return TokenSplit(examples, list(index))
