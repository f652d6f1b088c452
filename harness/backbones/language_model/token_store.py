"""Keeps a task's tokens in the store: arrays, shared by experiments with the same data, model and limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from harness.backbones.language_model import tokenise, tokens
from harness.backbones.language_model.tokenise import Tokeniser
from harness.backbones.language_model.tokens import (
    PreparedTask,
    SharedInts,
    TaskTokens,
    Tokens,
    TokenSplit,
    prepared_of,
    tokenise_task,
)
from harness.core import chat_template, render
from harness.core.config import TaskConfig
from harness.core.environment import version
from harness.core.hashing import hash_source
from harness.core.render import Renderer
from harness.core.store import Store, read_json, write_json
from harness.tasks.base import Preference, Question, Task, TaskData
from harness.training.batch import Example

KEPT_FROM = 5000  # rows
ARRAYS, COUNTS = "tokens.safetensors", "counts.json"
# The settings of a task that say which data are read, which the data's hash covers, or what is done with the policies.
WHERE_FROM = {"kind", "data", "subset", "evaluates", "losses", "generate", "judge_pairs"}
NONE = -1  # for the side that an unpaired example does not have
Arrays = Mapping[str, np.ndarray]


class TokenStore:
    """Tokenises tasks for one model, or reads what was tokenised before."""

    def __init__(self, store: Store, renderer: Renderer, model_hash: str):
        self.store, self.renderer = store, renderer
        # Tokens that were made by other code are not read.
        self.inputs = {
            "model": model_hash,
            "sources": [hash_source(Path(module.__file__)) for module in (chat_template, render, tokenise, tokens)],
            "versions": [version(package) for package in ("tokenizers", "transformers")],
        }

    def prepare(
        self, name: str, task: Task, data: TaskData, config: TaskConfig, progress: Callable[[int, int], None]
    ) -> PreparedTask:
        """Return a task ready for the model. Errors, and `progress`, are those of `tokenise_task`.

        Few rows are tokenised again each time: it takes a moment, and a plan that is refused leaves nothing behind.
        """
        inputs = {**self.inputs, "data": data.hash, "task": _settings(task, config)}
        tokeniser = Tokeniser.of(task, data, config, self.renderer)

        @cache
        def made() -> TaskTokens:
            return tokenise_task(name, task, data, config, tokeniser, progress)

        def build(folder: Path) -> None:
            save_file(_packed(made(), data), folder / ARRAYS)
            write_json(folder / COUNTS, made().counts)

        if _rows_wanted(data, config) < KEPT_FROM:
            return prepared_of(made(), data, config, tokeniser)
        try:
            folder = self.store.artifact("tokens", inputs, build).path
        except OSError:  # a store that cannot be written, or is full, keeps nothing
            return prepared_of(made(), data, config, tokeniser)
        is_read = not made.cache_info().currsize
        read = _unpacked(load_file(folder / ARRAYS), read_json(folder / COUNTS), data) if is_read else made()
        return prepared_of(read, data, config, tokeniser)


def _rows_wanted(data: TaskData, config: TaskConfig) -> int:
    limits = {
        "train": config.train_pairs,
        "dev": config.dev_pairs,
        "dev_questions": config.dev_prompts,
        "test": config.test_prompts,
    }
    return sum(len(getattr(data, name)[:limit]) for name, limit in limits.items())


def _settings(task: Task, config: TaskConfig) -> dict:
    """Return what of a task and its configuration decides its tokens, beside its data."""
    limits = {name: value for name, value in asdict(config).items() if name not in WHERE_FROM}
    facts = {name: getattr(task, name) for name in ("trains", "generates", "keep", "prompt_suffix")}
    return {**limits, **facts}


def _packed(made: TaskTokens, data: TaskData) -> Arrays:
    """Return a task's tokens as arrays: its rows by their places in the data, its tokens one after the other."""
    arrays: dict[str, np.ndarray] = {}
    for name, split in made.splits.items():
        place = {id(row.prompt): number for number, row in enumerate(getattr(data, name))}
        prompts = {prompt: number for number, prompt in enumerate(dict.fromkeys(s.prompt for s in split.sequences))}
        examples = [[place[id(e.prompt)], _or_none(e.chosen), _or_none(e.rejected)] for e in split.examples]
        arrays[f"{name}.examples"] = np.array(examples, dtype=np.int64).reshape(-1, 3)
        arrays[f"{name}.prompt_of"] = np.array([prompts[s.prompt] for s in split.sequences], dtype=np.int64)
        arrays |= _joined(f"{name}.prompts", prompts, np.int32)
        arrays |= _joined(f"{name}.completions", [s.completion for s in split.sequences], np.int32)
        arrays |= _joined(f"{name}.others", [e.others for e in split.examples], np.int64)
        arrays |= _joined(f"{name}.scores", [e.scores for e in split.examples], np.float64)
    for name, asked in made.asked.items():
        place = {id(question): number for number, question in enumerate(_questions(data, name))}
        arrays[f"{name}.questions"] = np.array([place[id(question)] for question, _ in asked], dtype=np.int64)
        arrays |= _joined(f"{name}.question_prompts", [ids for _, ids in asked], np.int32)
    return arrays


def _unpacked(arrays: Arrays, counts: dict[str, int], data: TaskData) -> TaskTokens:
    """Return the tokens that `_packed` made arrays of."""
    shared = SharedInts()
    splits = {}
    for name in ("train", "dev"):
        if f"{name}.examples" not in arrays:
            continue
        rows: Sequence[Preference] = getattr(data, name)
        prompts = [shared.tuple(ids) for ids in _parts(arrays, f"{name}.prompts")]
        of, completions = arrays[f"{name}.prompt_of"].tolist(), _parts(arrays, f"{name}.completions")
        sequences = [Tokens(prompts[i], shared.tuple(ids)) for i, ids in zip(of, completions, strict=True)]
        more = zip(_parts(arrays, f"{name}.scores"), _parts(arrays, f"{name}.others"), strict=True)
        examples = [
            Example(
                rows[row].prompt,
                None if chosen == NONE else chosen,
                None if rejected == NONE else rejected,
                tuple(scores),
                tuple(others),
            )
            for (row, chosen, rejected), (scores, others) in zip(arrays[f"{name}.examples"].tolist(), more, strict=True)
        ]
        splits[name] = TokenSplit(examples, sequences)
    asked = {
        name: [
            (_questions(data, name)[row], shared.tuple(ids))
            for row, ids in zip(
                arrays[f"{name}.questions"].tolist(), _parts(arrays, f"{name}.question_prompts"), strict=True
            )
        ]
        for name in ("dev", "test")
    }
    return TaskTokens(splits, asked, counts)


def _questions(data: TaskData, split: str) -> Sequence[Question]:
    return data.dev_questions if split == "dev" else data.test


def _or_none(index: int | None) -> int:
    return NONE if index is None else index


def _joined(name: str, parts: Iterable[Sequence], dtype: type) -> Arrays:
    """Return parts of different lengths as one array of values and one of where each part ends."""
    parts = list(parts)
    count = sum(map(len, parts))
    values = np.fromiter(chain.from_iterable(parts), dtype=dtype, count=count)
    return {name: values, f"{name}.ends": np.cumsum([len(part) for part in parts], dtype=np.int64)}


def _parts(arrays: Arrays, name: str) -> Iterable[list]:
    values = arrays[name]
    for start, end in pairwise([0, *arrays[f"{name}.ends"].tolist()]):
        yield values[start:end].tolist()
