"""The on-disk cache of paid answers and their costs: each question is asked once, and later runs reuse its answer."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import UserError
from harness.core.records import Usage

CACHE_FILE = "judgements.sqlite"
WAIT = 60  # seconds for another process to finish its write
SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, value REAL NOT NULL, text TEXT NOT NULL, served_by TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, usd REAL, created TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spending (
    account TEXT NOT NULL, model TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    usd REAL, created TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS spending_by_account ON spending (account, usd);
"""


@dataclass(frozen=True)
class Kept:
    """A usable answer: the value parsed from it, its text, the model that served it, and its usage."""

    value: float
    text: str
    served_by: str
    usage: Usage


class AnswerCache:
    """A SQLite file with answers by key and all spending, in WAL mode, so that several runs can use it concurrently.

    A context manager. `keep` and `spend` return once their data are on disk, so an interrupted run loses no answer it
    had received. Spending is booked on the account of an experiment's judge and includes unusable answers, which cost
    the same. Raises `UserError` if the file cannot be used.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None)  # None: each write commits
        try:
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.executescript(SCHEMA)
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise UserError(f"the cache of judgements {self.path} cannot be used ({error}); move it away") from None

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def get(self, key: str) -> Kept | None:
        """Return the answer, or None if there is none yet."""
        row = self._database.execute(
            "SELECT value, text, served_by, prompt_tokens, completion_tokens, usd FROM answers WHERE key = ?", (key,)
        ).fetchone()
        return Kept(*row[:3], Usage(*row[3:])) if row else None

    def keep(self, key: str, answer: Kept, account: str, model: str) -> None:
        """Store a usable answer and book its cost, in one transaction."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            row = (key, answer.value, answer.text, answer.served_by, *_columns(answer.usage), _now())
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            self.spend(account, model, answer.usage)
            self._database.execute("COMMIT")
        except BaseException:
            self._database.execute("ROLLBACK")
            raise

    def spend(self, account: str, model: str, usage: Usage) -> None:
        """Book the cost of an answer."""
        self._database.execute(
            "INSERT INTO spending VALUES (?, ?, ?, ?, ?, ?)", (account, model, *_columns(usage), _now())
        )

    def spent(self, account: str) -> float:
        """Return the total booked on an account, in USD; answers without a known price count as 0."""
        row = self._database.execute("SELECT TOTAL(usd) FROM spending WHERE account = ?", (account,)).fetchone()
        return row[0]


def _columns(usage: Usage) -> tuple[int, int, float | None]:
    return usage.prompt_tokens, usage.completion_tokens, usage.usd


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
