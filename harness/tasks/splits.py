"""Assigns rows to splits (training, judge fit, held out) by prompt, independently of the order of the files.

Each prompt's split follows from a number in [0, 1), derived from the sha256 of its text. A source without its own
splits (the packaged files) is split by `HASHED`; a source with a test split keeps it, and the rest is split by `REST`.

Two dialogues may be the same conversation cut at different turns, so that the answer to one is in the prompt of the
other. The number is therefore computed from the dialogue's opening (up to the first user turn), which keeps
conversations together. If most dialogues share their opening (a fixed instruction, for example), it is computed from
the whole prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from harness.core.errors import UserError
from harness.core.hashing import hash_value
from harness.tasks.base import Preference, Question, TaskData
from harness.tasks.formats import Dropped, ParsedRow
from harness.tasks.rows import Row

# Upper end of each split's share. Only half of a small data set is for training: the judge's fit needs hundreds of
# pairs, and the test hundreds of prompts for an interval of a few points. The packaged HH gives 1,535 / 717 / 312 /
# 476 pairs.
HASHED = {"train": 0.50, "judge_fit": 0.75, "dev": 0.85, "test": 1.0}
# Data sets with their own test split are mostly large, so smaller shares suffice.
REST = {"judge_fit": 0.10, "dev": 0.15, "train": 1.0}
REST_BUT_DEV = {"judge_fit": 0.10, "train": 1.0}  # for a source that also has a dev split


def read_task(rows: Iterable[Row], parse: Callable[[Row], ParsedRow], *, source: str, labels: str) -> TaskData:
    """Parse rows and split them. `parse` returns a parsed row, or raises `Dropped` with a reason.

    In `counts`, "rows read" is the sum of all "rows dropped, <reason>", all "<split>: rows" (rows with a label) and
    "test: rows without a label". Raises `UserError` if paired and unpaired rows are mixed, if no row is left, or if
    too few are left to split.
    """
    parsed_rows, counts = [], Counter()
    kinds: dict[bool, str] = {}  # positions of the first pair and of the first unpaired row
    places: dict[str, str] = {}  # positions of the prompts
    for row in rows:
        counts["rows read"] += 1
        try:
            parsed = parse(row)
        except Dropped as reason:
            counts[f"rows dropped, {reason}"] += 1
            continue
        parsed_rows.append(parsed)
        places.setdefault(parsed.key, row.where)
        if parsed.preference is not None:
            kinds.setdefault(parsed.preference.paired, row.where)
            if len(kinds) == 2:
                raise UserError(f"{kinds[True]} is a pair, {kinds[False]} is unpaired; put them into two data sets")
    if not parsed_rows:
        raise UserError(f"{source}: no row can be used ({_told(counts)})")
    data = split_rows(parsed_rows, labels=labels)
    counts.update(data.counts)
    empty = [name for name in ("train", "dev", "test") if not getattr(data, name)]
    if empty and kinds:
        raise UserError(
            f"{source}: its {len({r.key for r in parsed_rows})} distinct prompts, split by prompt, leave nothing for "
            f"{' and '.join(empty)} ({_told(counts)}); "
            "give more rows, or a 'split' column that says train, dev and test"
        )
    return replace(data, counts=dict(counts), places=places)


def _told(counts: Counter[str]) -> str:
    return "; ".join(f"{key}: {count}" for key, count in counts.items() if key.startswith("rows "))


def split_rows(rows: Iterable[ParsedRow], *, labels: str) -> TaskData:
    """Return the rows as task data, with the sizes of the splits and the dropped rows in `counts`."""
    parts: dict[str, list[ParsedRow]] = {split: [] for split in HASHED}
    counts: Counter[str] = Counter()
    # Sorted by content hash, so that the file order does not matter and the first n rows are a fair sample.
    for split, row in _assigned(sorted(rows, key=_content_key)):
        if split in parts:
            parts[split].append(row)
        else:
            counts[f"rows dropped, {split}"] += 1
    labelled = {split: [r.preference for r in part if r.preference is not None] for split, part in parts.items()}
    judge_fit, judge_test = _pairs(labelled["judge_fit"]), _pairs(labelled["test"])
    sizes = {
        "train: rows": len(labelled["train"]),
        "dev: rows": len(labelled["dev"]),
        "judge_fit: rows": len(labelled["judge_fit"]),
        "judge_fit: pairs": len(judge_fit),
        "judge_test: rows": len(labelled["test"]),
        "judge_test: pairs": len(judge_test),
        "test: rows without a label": len(parts["test"]) - len(labelled["test"]),
    }
    counts.update(sizes)
    dev_questions, test = (_questions(parts[split], counts, split) for split in ("dev", "test"))
    return TaskData(
        labelled["train"], labelled["dev"], test, judge_fit, judge_test, labels, dict(counts), dev_questions
    )


def _assigned(rows: Sequence[ParsedRow]) -> list[tuple[str, ParsedRow]]:
    """Pair each row with its split or, if it has none, the reason why it is dropped."""
    number = _numbers(rows)
    named = {row.split for row in rows}
    if len(named) == 1:  # a single split (a folder with only test.jsonl, for example) gives no division
        return _assigned_by_hash(rows, number)
    if "test" not in named:  # train and validation only: the validation split becomes the test
        rows = [replace(r, split="test") if r.split == "dev" else r for r in rows]
    held_out = {split: {r.key for r in rows if r.split == split} for split in ("test", "dev")}
    shares = REST_BUT_DEV if held_out["dev"] else REST

    def assign(row: ParsedRow) -> str:
        for split, keys in held_out.items():
            if row.split == split:
                return split if split == "test" or row.preference is not None else "no label"
            if row.key in keys:
                return f"prompt also in {split}"
        return "no label" if row.preference is None else _share(number(row), shares)

    return [(assign(row), row) for row in rows]


def _assigned_by_hash(rows: Sequence[ParsedRow], number: Callable[[ParsedRow], float]) -> list[tuple[str, ParsedRow]]:
    """Split labelled rows by number; unlabelled ones are test questions, unless their prompt is in another split."""
    labelled = {number(row): _share(number(row), HASHED) for row in rows if row.preference is not None}

    def assign(row: ParsedRow) -> str:
        split = labelled.get(number(row), "test")
        return split if split == "test" or row.preference is not None else f"no label, and prompt in {split}"

    return [(assign(row), row) for row in rows]


def _numbers(rows: Sequence[ParsedRow]) -> Callable[[ParsedRow], float]:
    """Return the function from a row to its prompt's number in [0, 1)."""
    by_opening = 2 * len({r.opening_key for r in rows}) >= len({r.key for r in rows})
    # 13 hex digits are 52 bits, which a float holds exactly.
    return lambda row: int((row.opening_key if by_opening else row.key)[:13], 16) / 2**52


def _share(number: float, shares: dict[str, float]) -> str:
    return next(split for split, end in shares.items() if number < end)


def _content_key(row: ParsedRow) -> str:
    preference = row.preference
    sides = None if preference is None else [preference.chosen, preference.rejected]
    if preference is not None and preference.scores:  # pairs without scores keep their previous hash and order
        sides += [preference.scores, [other.text for other in preference.others]]
    return hash_value([[[turn.role, turn.content] for turn in row.prompt], sides, row.baseline, row.split])


def _questions(rows: Iterable[ParsedRow], counts: Counter[str], split: str) -> list[Question]:
    """Return one question per distinct prompt, sorted by id; the rows that give none are added to `counts`."""
    questions: dict[str, Question] = {}
    for row in rows:
        # The end of the digest, because its start decides the split and the order must be independent of that.
        name = row.key[-16:]
        if row.baseline is None:
            counts[f"{split}: rows without a baseline"] += 1
        elif name in questions:
            counts[f"{split}: rows on another's prompt"] += 1
        else:
            questions[name] = Question(name, row.prompt, row.baseline)
    counts[f"{split}: questions"] = len(questions)
    return [questions[name] for name in sorted(questions)]


def _pairs(preferences: Iterable[Preference]) -> list[Preference]:
    """Return the pairs; in unpaired data, match desirable with undesirable completions of the same prompt."""
    pairs: list[Preference] = []
    waiting: dict[tuple, list[Preference]] = {}
    for preference in preferences:
        if preference.paired:
            pairs.append(preference)
        elif partners := waiting.get((preference.prompt, preference.chosen is not None)):
            other = partners.pop(0)
            good, bad = (preference, other) if preference.chosen is not None else (other, preference)
            pairs.append(Preference(preference.prompt, good.chosen, bad.rejected))
        else:
            waiting.setdefault((preference.prompt, preference.chosen is None), []).append(preference)
    return pairs
