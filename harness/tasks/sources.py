"""Rows from a packaged file, a local file or folder, or the hub. Every row records its position in the source."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from harness.core.bounded import UNREADABLE, bounded_content, bounded_lines, check_row, most_unpacked
from harness.core.errors import UserError, first_line
from harness.tasks.hub import read_hub
from harness.tasks.rows import Row, characters_in, make_row, not_empty, split_of
from losses.registry import nearest

EXTENSIONS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")
ROWS_AT_ONCE = 64  # of a Parquet file, whose rows may unpack to much
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def read_rows(data: str, subset: str | None = None, *, revision: str | None = None) -> Iterator[Row]:
    """Yield the rows of a local file, a local folder in a hub data set's layout, or a hub data set.

    `subset` is a sub-folder or a hub data set's configuration; `revision` applies to the hub. A `split` column
    overrides the split in a file's name. Raises `UserError` for missing, empty or malformed data.
    """
    path = Path(os.path.expanduser(data))
    if path.is_dir():
        rows = _folder_rows(path, subset)
    elif path.is_file():
        if subset:
            raise UserError(f"{data} is a file, so it has no subset {subset!r}; name the folder, or leave 'subset' out")
        rows = _file_rows(path, None)
    elif HUB_ID.fullmatch(data) and not data.endswith(EXTENSIONS):
        rows = read_hub(data, subset, revision)
    else:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            f"no data at {data}: neither a file, a folder, nor a hub id (owner/name){_hint(path.name, siblings)}"
        )
    yield from not_empty(rows, data)


def read_packaged(name: str, subset: str | None = None) -> Iterator[Row]:
    """Yield the rows of the packaged file `data/<name>.jsonl.gz`. Raises `UserError` for a subset: there are none."""
    if subset:
        raise UserError(
            f"the packaged {name} data has no subset {subset!r}; leave 'subset' out, or name a data set in 'data'"
        )
    with resources.as_file(resources.files("harness.tasks") / "data" / f"{name}.jsonl.gz") as path:
        yield from _file_rows(path, None)


def _hint(name: str, known: list[str]) -> str:
    """Return a hint at the name in `known` nearest to `name`, or "": a list of unrelated files would not help."""
    hint = nearest(name, known)
    return hint if "did you mean" in hint else ""


def _folder_rows(folder: Path, subset: str | None) -> Iterator[Row]:
    """Yield the rows of a folder's files, in the order of their paths.

    As on the hub, if any file or folder is named after a split, the files without a split in their path are ignored.
    """
    root = folder / subset if subset else folder
    if not root.is_dir():
        folders = [p.name for p in folder.iterdir() if p.is_dir()]
        raise UserError(f"{folder} has no subset {subset!r}{nearest(subset, folders) or '; it has no sub-folders'}")
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.name.endswith(EXTENSIONS) and p.is_file())
    files = [p for p in files if p.name not in METADATA and not any(part.startswith(".") for part in p.parts)]
    splits = {path: next(filter(None, map(split_of, reversed(path.parts))), None) for path in files}
    named = {path: split for path, split in splits.items() if split} or splits
    if not named:
        raise UserError(f"{root} holds no data file; looked for {', '.join(EXTENSIONS)}")
    for path, split in named.items():
        yield from _file_rows(root / path, split)


def _file_rows(path: Path, split: str | None) -> Iterator[Row]:
    kinds = {".parquet": _parquet_values, ".jsonl": _jsonl_values, ".jsonl.gz": _jsonl_values}
    kinds |= {".json": _json_values, ".json.gz": _json_values}
    read = next((read for extension, read in kinds.items() if path.name.endswith(extension)), None)
    if read is None:
        raise UserError(f"{path}: unknown kind of file; accepted: {', '.join(EXTENSIONS)}")
    try:
        for where, values in read(path):
            yield make_row(values, where, split)
    except UNREADABLE as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from None


def _jsonl_values(path: Path) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(bounded_lines(path), 1):
        if text := _decoded(line, path, number).strip():
            try:
                yield f"{path}:{number}", json.loads(text)
            except (ValueError, RecursionError) as error:
                raise _not_json(error, f"{path}:{number}") from None


def _json_values(path: Path) -> Iterator[tuple[str, object]]:
    """Yield the elements of a JSON list, or consecutive JSON values (JSON lines in a file named .json)."""
    text = _decoded(bounded_content(path), path, 1)
    end = re.match(r"\s*", text).end()
    listed = text.startswith("[", end)
    space = re.compile(r"[\s,]*" if listed else r"\s*")
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    try:
        if listed:
            decoder.decode(text)  # parsed as a whole first, so that a missing comma or bracket is an error
            end = space.match(text, end + 1).end()
        while end < len(text) and not (listed and text[end] == "]"):
            line, counted = line + text.count("\n", counted, end), end
            values, end = decoder.raw_decode(text, end)
            check_row(end - counted, f"{path}:{line}")
            yield f"{path}:{line}", values
            end = space.match(text, end).end()
    except json.JSONDecodeError as error:
        raise _not_json(error, f"{path}:{error.lineno}") from None
    except (ValueError, RecursionError) as error:
        raise _not_json(error, f"{path}:{line}") from None


def _not_json(error: ValueError | RecursionError, where: str) -> UserError:
    """Return what an error of the JSON parser means to the user."""
    if isinstance(error, json.JSONDecodeError):
        return UserError(f"{where}: not valid JSON: {error.msg} (column {error.colno})")
    if isinstance(error, RecursionError):
        return UserError(f"{where}: not valid JSON: nested too deeply")
    return UserError(f"{where}: cannot be read: {error}")  # an integer of thousands of digits


def _decoded(content: bytes, path: Path, line: int) -> str:
    try:
        return content.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{line + content.count(10, 0, error.start)}: not UTF-8 text: {error.reason}") from None


def _parquet_values(path: Path) -> Iterator[tuple[str, object]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            number, unpacked, most = 0, 0, most_unpacked(path)
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                for values in batch.to_pylist():
                    number, size = number + 1, characters_in(values)
                    unpacked += size
                    check_row(size, f"{path} row {number}")
                    if unpacked > most:
                        raise UserError(f"{path} unpacks to far more than its size; write JSON lines if it is meant to")
                    yield f"{path} row {number}", values
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a readable Parquet file: {first_line(error)}") from None
