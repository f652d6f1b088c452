"""Verdicts that were paid for, on disk: asked once, kept for every later run."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from harness.errors import UserError

WAIT = 60  # seconds for another process to finish its write
SCHEMA = """CREATE TABLE IF NOT EXISTS judgements (
    key TEXT PRIMARY KEY, verdict INTEGER NOT NULL, answer TEXT NOT NULL, served_by TEXT NOT NULL, created TEXT NOT NULL
) WITHOUT ROWID"""


class JudgementCache:
    """A SQLite file of verdicts by key, in WAL mode: several runs may use it at once. A context manager.

    Every verdict is on disk when `put` returns, so an interrupted run loses none.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None)  # None: each write is a commit
        try:
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(SCHEMA)
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise UserError(f"the cache of judgements {self.path} cannot be used ({error}); move it away") from None

    def __enter__(self) -> JudgementCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def get(self, key: str) -> int | None:
        """Return the verdict, 1 or 2, or None if this was not asked yet."""
        row = self._database.execute("SELECT verdict FROM judgements WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def put(self, key: str, verdict: int, answer: str, served_by: str) -> None:
        """Keep a verdict with the judge's whole answer and the exact model that the endpoint said it came from."""
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._database.execute(
            "INSERT OR REPLACE INTO judgements VALUES (?, ?, ?, ?, ?)", (key, verdict, answer, served_by, created)
        )
