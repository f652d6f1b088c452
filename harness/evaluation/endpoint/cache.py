"""The file of paid replies and of what they cost: each question is asked once, and later runs read its reply again."""

from __future__ import annotations

import json
import os
import sqlite3
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path

from harness.core.errors import UserError
from harness.core.from_json import from_json
from harness.core.records import Usage
from harness.evaluation.endpoint.reply import Reply, SpoiltError

CACHE_FILE = "answers/judgements.sqlite"  # the folder can be entered, and the file read, by its owner alone
WAIT = 60  # seconds for another process to finish its write
SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, reply BLOB NOT NULL, served_by TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, usd REAL, created TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spending (
    entry INTEGER PRIMARY KEY, account TEXT NOT NULL, model TEXT NOT NULL, answered INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, usd REAL, created TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS spending_by_account ON spending (account, answered, usd);
"""


@dataclass(frozen=True)
class Kept:
    """A reply with the fields that are read, and its usage."""

    reply: Reply
    usage: Usage


class AnswerCache:
    """A SQLite file with replies by question and all spending, in WAL mode, for several processes of one machine.

    Replies are kept as they came and not as they were read: another reader, or one that was mended, reads them again.

    Every request has an entry in the spending of its account (an experiment's judge). It is made before the request,
    at the most that the request can cost, and set to the true cost when its answer is there. If the process ends in
    between, the entry stays as it is, because the endpoint may have charged for the answer. So the spending of all
    processes together never exceeds a budget.

    A context manager. What is written survives the end of the process. Raises `UserError` if the file cannot be used.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        with self._usable():
            self.path.parent.parent.mkdir(parents=True, exist_ok=True)
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            with suppress(FileExistsError):  # closing a file that is open elsewhere in the process drops its locks
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))  # SQLite's others get this mode
            self._database = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None)  # None: each write commits
            try:
                self._use_wal()
                self._database.execute("PRAGMA synchronous=NORMAL")
                self._database.executescript(SCHEMA)
            except sqlite3.Error:
                self._database.close()
                raise

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def get(self, key: str) -> Kept | None:
        """Return the reply to a question; None if there is none yet, or only a damaged one."""
        with self._usable():
            row = self._database.execute(
                "SELECT reply, prompt_tokens, completion_tokens, usd FROM replies WHERE key = ?", (key,)
            ).fetchone()
        return _unpacked(*row) if row else None

    def keep(self, key: str, kept: Kept, served_by: str, entry: int) -> None:
        """Store a reply, with the name of the model that served it, and book its cost on its entry: both or neither."""
        with self._transaction():
            row = (key, _packed(kept.reply), served_by, *_columns(kept.usage), _now())
            self._database.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            self._settle(entry, kept.usage)

    def set_aside(self, account: str, model: str, most: Usage, budget: float | None) -> int | None:
        """Make an entry for a request that may cost `most`; None if the account's spending would exceed `budget`."""
        with self._transaction():
            if budget is not None and self.spent(account) + (most.usd or 0) > budget:
                return None
            row = (account, model, *_columns(most), _now())
            return self._database.execute("INSERT INTO spending VALUES (NULL, ?, ?, 0, ?, ?, ?, ?)", row).lastrowid

    def book(self, entry: int, usage: Usage) -> None:
        """Book the cost of an answer that is of no use."""
        with self._usable():
            self._settle(entry, usage)

    def release(self, entry: int) -> None:
        """Remove the entry of a request that got no answer."""
        with self._usable():
            self._database.execute("DELETE FROM spending WHERE entry = ?", (entry,))

    def spent(self, account: str, *, unanswered_only: bool = False) -> float:
        """Return an account's spending in USD, with what is set aside; entries without a known price count as 0."""
        which = " AND answered = 0" if unanswered_only else ""
        with self._usable():
            row = self._database.execute(f"SELECT TOTAL(usd) FROM spending WHERE account = ?{which}", (account,))
            return row.fetchone()[0]

    def _use_wal(self) -> None:
        """Turn on WAL mode. For this SQLite does not wait for a process that writes at the same moment."""
        until = time.monotonic() + WAIT
        while True:
            try:
                self._database.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
            time.sleep(0.01)

    def _settle(self, entry: int, usage: Usage) -> None:
        self._database.execute(
            "UPDATE spending SET answered = 1, prompt_tokens = ?, completion_tokens = ?, usd = ? WHERE entry = ?",
            (*_columns(usage), entry),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._usable():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Turn errors of the file into a `UserError` that names it."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            remedy = "see that its folder can be written and its disk is not full"
            if not isinstance(error, (sqlite3.OperationalError, OSError)):
                remedy = "move it away; what it holds is then paid for again"
            raise UserError(f"the file of paid answers {self.path} cannot be used ({error}); {remedy}") from None


def _packed(reply: Reply) -> bytes:
    return zlib.compress(json.dumps(reply.choice).encode())


def _unpacked(content: object, *columns: object) -> Kept | None:
    """Return a stored reply; None if its row is damaged."""
    try:
        reply = Reply(json.loads(zlib.decompress(content)))  # type: ignore[arg-type]  # any type raises or is right
        _ = reply.tokens  # raises for what is no reply
        usage = from_json(Usage, dict(zip((field.name for field in fields(Usage)), columns, strict=True)))
        return Kept(reply, usage)
    except (zlib.error, TypeError, ValueError, RecursionError, AttributeError, SpoiltError):
        return None


def _columns(usage: Usage) -> tuple[int, int, float | None]:
    return usage.prompt_tokens, usage.completion_tokens, usage.usd


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
