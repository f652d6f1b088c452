"""Rows from the Hugging Face hub, through `datasets`. Reads data files only; a data set's code is never run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from harness.core.bounded import check_row
from harness.core.errors import UserError, first_line
from harness.tasks.rows import Row, characters_in, make_row, split_of


def read_hub(name: str, subset: str | None = None, revision: str | None = None) -> Iterator[Row]:
    """Yield the rows of every split of a hub data set.

    `subset` is a configuration, a family of splits ("prefs" for train_prefs and test_prefs), or a folder. Raises
    `UserError` if the hub or the data set is unavailable, or if the data set has several families of splits and
    `subset` names none of them.
    """
    with _from_hub(name):
        splits = _load(name, subset, revision)
    families = sorted({_family(split) for split in splits})
    if len(families) > 1:
        raise UserError(
            f"hub data set {name!r} has the splits {', '.join(splits)}; "
            f"name in 'subset' which family is meant: {', '.join(families)}"
        )
    for split, rows in splits.items():
        yield from _rows(f"{name} {split}", rows, split_of(split))


def read_hub_file(name: str, file: str) -> Iterator[Row]:
    """Yield the rows of one JSON file in a hub data set's repository (for data sets whose splits need a script)."""
    with _from_hub(name):
        from datasets import load_dataset

        rows = load_dataset("json", data_files=f"hf://datasets/{name}/{file}", split="train")
    yield from _rows(f"{name} {file}", rows, None)


def _load(name: str, subset: str | None, revision: str | None) -> dict:
    """Return a mapping from split names to rows."""
    from datasets import get_dataset_config_names, get_dataset_split_names, load_dataset

    if subset is None:
        return load_dataset(name, revision=revision)
    configurations = get_dataset_config_names(name, revision=revision)
    if subset in configurations:
        return load_dataset(name, subset, revision=revision)
    if subset in map(_family, get_dataset_split_names(name, revision=revision)):
        splits = load_dataset(name, revision=revision)
        return {split: rows for split, rows in splits.items() if _family(split) == subset}
    try:
        return load_dataset(name, data_dir=subset, revision=revision)
    except Exception as error:  # the data set itself is reachable, so the folder is the problem
        raise UserError(
            f"hub data set {name!r} has no subset {subset!r}: it is none of its configurations "
            f"({', '.join(configurations)}), nor a folder that could be read ({_reason(error)})"
        ) from None


def _rows(where: str, rows: Iterable[object], split: str | None) -> Iterator[Row]:
    for number, values in enumerate(rows, 1):
        check_row(characters_in(values), f"{where} row {number}")
        yield make_row(values, f"{where} row {number}", split)


def _family(split: str) -> str:
    """Return a split's name without the word for the split: "prefs" for "train_prefs"."""
    word, _, rest = split.partition("_")
    return rest if split_of(word) else split


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


@contextmanager
def _from_hub(name: str) -> Iterator[None]:
    """Turn any error of the hub's client into a one-line `UserError`, and silence its progress bars and notices."""
    from datasets.utils import logging

    showed, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever the error, the data are unavailable
        raise UserError(
            f"no local data at {name!r}, and none to be had from the hub ({_reason(error)}); "
            "name a local file or folder"
        ) from None
    finally:
        logging.set_verbosity(level)
        if showed:
            logging.enable_progress_bar()
