"""AlpacaEval's table of instruction difficulties, which length-controlled win rates require.

The official table is only on the model hub. An estimate of it is packaged: fitted to the published weights and win
rates of about 190 models, it gives LC win rates with a median error of 0.08 points and a maximum error of 0.52 for
models that it was not fitted to (0.10 for the others). Results always state which table was used.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np

from harness.core.assets import cache_folder
from harness.core.errors import UserError, first_line
from harness.core.records import Record
from harness.core.store import write_text
from harness.evaluation.statistics.length_control import Anchors

INSTRUCTIONS = 805
ORIGINS = OFFICIAL, ESTIMATED = "official", "estimated"
REPOSITORY, REVISION, FILE = "tatsu-lab/alpaca_eval", "2edc6fad8be6b14ea7230aabfd08188da6b8b814", "df_gamed.csv"
# The hash of the file at that revision, as pinned by two public evaluation set-ups.
SHA256 = "97aeec3f1c7de6dee6fd31fe66f1702623f4614c3efe1c6fc5f4927cd5fd674d"
PACKAGED = Path(__file__).parents[2] / "tasks/data/alpaca_eval_difficulty.csv.gz"
COLUMNS = ("index", "preference", "std_delta_len", "instruction_difficulty")
TIMEOUT = 10  # seconds
DIFFICULTY = "difficulty.json"  # the file with the table, in the folder of the judgements


@dataclass(frozen=True)
class DifficultyTable:
    """`difficulty` (805,) in upstream's order of the instructions, the anchors, and the origin of the table.

    `origin` is "official" or "estimated"; `note` says why the official table was not used, if it was preferred.
    """

    difficulty: np.ndarray
    anchors: Anchors
    origin: str
    note: str = ""

    def to_json(self, index: Mapping[str, int]) -> dict:
        """Return the table as a JSON-serialisable dict; `index` maps prompt ids to positions among the instructions."""
        anchors = {name: values.tolist() for name, values in vars(self.anchors).items()}
        return {
            "origin": self.origin,
            "note": self.note,
            "index": dict(index),
            "difficulty": self.difficulty.tolist(),
            "anchors": anchors,
        }

    @classmethod
    def from_json(cls, table: Mapping) -> DifficultyTable:
        """Return the table from the result of `to_json`. Raises `ValueError` for anything else."""
        try:
            values = {field.name: _numbers(table["anchors"][field.name]) for field in fields(Anchors)}
            loaded = cls(_numbers(table["difficulty"]), Anchors(**values), str(table["origin"]), str(table["note"]))
        except (KeyError, TypeError, AttributeError):
            raise ValueError("it is no table of instruction difficulties") from None
        if loaded.difficulty.shape != (INSTRUCTIONS,) or len({column.shape for column in values.values()}) > 1:
            raise ValueError(f"it has no difficulty for each of {INSTRUCTIONS} instructions")
        return loaded


@dataclass(frozen=True)
class StoredAnchors:
    """`Anchors` as lists."""

    terms: list[float]
    difficulty: list[float]
    preferences: list[float]


@dataclass(frozen=True)
class StoredTable(Record):
    """The file that `DifficultyTable.to_json` makes."""

    FILE: ClassVar[str] = DIFFICULTY

    origin: str
    index: Mapping[str, int]
    difficulty: list[float]
    anchors: StoredAnchors
    note: str = ""


def difficulty_table(wanted: str = "auto") -> DifficultyTable:
    """Return the official table (from the user's cache, else from the hub) or the packaged estimate.

    `wanted` is "official", "estimated", or "auto": the official table if available, else the estimate with the reason
    in `note`. Raises `UserError` if "official" is wanted and unavailable, and, unless "estimated" is wanted, if the
    file has the wrong content.
    """
    if wanted == ESTIMATED:
        return read_table(gzip.decompress(PACKAGED.read_bytes()).decode(), ESTIMATED)
    text, reason = official_table()
    if text is not None:
        return read_table(text, OFFICIAL)
    if wanted == OFFICIAL:
        raise UserError(f"the official table of instruction difficulties cannot be had: {reason}; or use the estimate")
    estimate = difficulty_table(ESTIMATED)
    return DifficultyTable(estimate.difficulty, estimate.anchors, ESTIMATED, f"the official table: {reason}")


def official_table(sha256: str = SHA256) -> tuple[str | None, str]:
    """Return the official table's text and "", or None and the reason why it is unavailable.

    A downloaded table is kept in the user's cache. Raises `UserError` if the file's hash is not `sha256`.
    """
    kept = cache_folder() / "alpaca_eval" / FILE
    if kept.is_file():
        return _checked(kept.read_bytes(), sha256, str(kept)), ""
    from huggingface_hub import get_session, hf_hub_url

    url = hf_hub_url(REPOSITORY, FILE, repo_type="dataset", revision=REVISION)
    try:
        response = get_session().get(url, timeout=TIMEOUT, follow_redirects=True)
        response.raise_for_status()
    except Exception as error:  # the hub's client raises many kinds of error; all mean the table is unavailable
        return None, f"{type(error).__name__}: {first_line(error)}"
    text = _checked(response.content, sha256, url)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_text(kept, text)
    return text, ""


def read_table(text: str, origin: str) -> DifficultyTable:
    """Parse a CSV table of two models' rows, each with all instructions in order; difficulties are the first model's.

    Raises `UserError` for a malformed table.
    """
    try:
        rows = [[float(row[name]) for name in COLUMNS] for row in csv.DictReader(io.StringIO(text))]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the {origin} table of instruction difficulties cannot be read ({error})") from None
    index, preferences, differences, difficulty = np.array(rows).reshape(-1, len(COLUMNS)).T
    if not np.array_equal(index, np.tile(np.arange(INSTRUCTIONS), 2)):
        raise UserError(f"the {origin} table of instruction difficulties does not hold {INSTRUCTIONS} rows, twice")
    return DifficultyTable(difficulty[:INSTRUCTIONS], Anchors(np.tanh(differences), difficulty, preferences), origin)


def _numbers(values: object) -> np.ndarray:
    numbers = np.array(values, dtype=float)
    if not np.isfinite(numbers).all():
        raise ValueError("a number of its table is not finite")
    return numbers


def _checked(content: bytes, sha256: str, where: str) -> str:
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise UserError(
            f"{where} is not AlpacaEval's table of instruction difficulties: its sha256 is {digest[:16]}..., "
            f"not {sha256[:16]}...; delete it if it is a local copy, or use the estimate"
        )
    return content.decode()
