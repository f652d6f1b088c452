"""Rows from the Hugging Face hub, through `datasets`. Data files only: no data set's code is ever run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.core.errors import UserError
from harness.tasks.rows import Row, make_row, split_of


def read_hub(name: str, subset: str | None = None, revision: str | None = None) -> Iterator[Row]:
    """Yield the rows of every split of a hub data set.

    `subset` is one of its configurations, one of its families of splits ("prefs" for train_prefs and test_prefs), or
    one of its folders. Raises `UserError` where the hub or the data set cannot be had, and where the data set has
    several families of splits and `subset` names none of them.
    """
    with _from_hub(name):
        found = _load(name, subset, revision)
    families = sorted({_family(split) for split in found})
    if len(families) > 1:
        raise UserError(
            f"hub data set {name!r} has the splits {', '.join(found)}; "
            f"name in 'subset' which family is meant: {', '.join(families)}"
        )
    for split, rows in found.items():
        yield from _rows(f"{name} {split}", rows, split_of(split))


def read_hub_file(name: str, file: str) -> Iterator[Row]:
    """Yield the rows of one JSON file in a hub data set's repository (for those whose splits were made by a script)."""
    with _from_hub(name):
        from datasets import load_dataset

        rows = load_dataset("json", data_files=f"hf://datasets/{name}/{file}", split="train")
    yield from _rows(f"{name} {file}", rows, None)


def _load(name: str, subset: str | None, revision: str | None) -> dict:
    """Return a mapping from the names of splits to their rows."""
    from datasets import get_dataset_config_names, get_dataset_split_names, load_dataset

    if subset is None:
        return load_dataset(name, revision=revision)
    configurations = get_dataset_config_names(name, revision=revision)
    if subset in configurations:
        return load_dataset(name, subset, revision=revision)
    if subset in map(_family, get_dataset_split_names(name, revision=revision)):
        found = load_dataset(name, revision=revision)
        return {split: rows for split, rows in found.items() if _family(split) == subset}
    try:
        return load_dataset(name, data_dir=subset, revision=revision)
    except Exception as error:  # the data set itself could be reached, so it is the folder that could not be read
        raise UserError(
            f"hub data set {name!r} has no subset {subset!r}: it is none of its configurations "
            f"({', '.join(configurations)}), nor a folder that could be read ({_reason(error)})"
        ) from None


def _rows(where: str, rows, split: str | None) -> Iterator[Row]:
    for number, values in enumerate(rows, 1):
        yield make_row(values, f"{where} row {number}", split)


def _family(split: str) -> str:
    """Return what is left of a split's name without the word for the split: "prefs" of "train_prefs"."""
    word, _, rest = split.partition("_")
    return rest if split_of(word) else split


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


@contextmanager
def _from_hub(name: str):
    """Turn the many errors of the hub's client into one line, and silence its progress bars and notices."""
    from datasets.utils import logging

    showed, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever it is, the data are not to be had
        raise UserError(
            f"no local data at {name!r}, and none to be had from the hub ({_reason(error)}); name a local file or folder"
        ) from None
    finally:
        logging.set_verbosity(level)
        if showed:
            logging.enable_progress_bar()
