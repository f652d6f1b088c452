"""The ledger of paid answers: one for all processes, and right after any of them has ended in any way."""

import sqlite3
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from threading import Timer

import pytest

from harness.core.errors import UserError
from harness.core.records import Usage
from harness.evaluation.endpoint.cache import CACHE_FILE, AnswerCache, Kept
from harness.evaluation.endpoint.reply import Reply

CENT = Usage(10, 1, 0.01)


def spend(folder: str) -> int:
    """Set a cent aside again and again, and book it each time; return how often that was allowed."""
    with AnswerCache(Path(folder) / CACHE_FILE) as cache:
        entries = [cache.set_aside("tests", "m", CENT, 1.005) for _ in range(60)]
        allowed = [entry for entry in entries if entry is not None]
        for entry in allowed[::2]:
            cache.book(entry, CENT)
        return len(allowed)


@pytest.mark.slow
def test_processes_that_start_together_share_a_budget_to_the_cent(tmp_path):
    with get_context("spawn").Pool(4) as processes:
        allowed = processes.map(spend, [str(tmp_path)] * 4, chunksize=1)
    assert sum(allowed) == 100
    with AnswerCache(tmp_path / CACHE_FILE) as cache:
        assert cache.spent("tests") == pytest.approx(1.0)
        assert 0 < cache.spent("tests", unanswered_only=True) < 1


def test_a_process_that_opens_a_new_file_waits_for_another_that_writes_to_it(tmp_path):
    """SQLite waits for nobody when the mode of the file is changed, which the first process of a run does."""
    path = tmp_path / CACHE_FILE
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        done = Timer(0.5, other.execute, ["COMMIT"])
        done.start()
        with AnswerCache(path) as cache:
            assert cache.spent("tests") == 0
        done.join()


def test_an_entry_is_settled_with_its_reply_or_released(tmp_path):
    with AnswerCache(tmp_path / CACHE_FILE) as cache:
        kept, spoilt, lost = (cache.set_aside("tests", "m", Usage(100, 0, 1.0), None) for _ in range(3))
        assert cache.spent("tests") == cache.spent("tests", unanswered_only=True) == 3.0
        cache.keep("question", Kept(Reply({"message": {"content": "yes"}}), CENT), "m-2026", kept)
        cache.book(spoilt, Usage(1, 1, 0.25))
        cache.release(lost)
        assert (cache.spent("tests"), cache.spent("tests", unanswered_only=True)) == (0.26, 0.0)
    with AnswerCache(tmp_path / CACHE_FILE) as cache:
        reply = cache.get("question")
        assert (reply.reply.text, reply.usage, cache.get("another")) == ("yes", CENT, None)


def test_a_place_that_cannot_hold_the_file_is_said(tmp_path):
    (tmp_path / "answers").write_text("a file in the folder's place")
    with pytest.raises(UserError, match=r"judgements\.sqlite cannot be used .* its folder can be written"):
        AnswerCache(tmp_path / CACHE_FILE)


def test_a_file_that_is_damaged_meanwhile_is_said(tmp_path):
    with AnswerCache(tmp_path / CACHE_FILE) as cache:
        entry = cache.set_aside("tests", "m", CENT, None)
        cache._database.execute("DROP TABLE spending")
        with pytest.raises(UserError, match=r"judgements\.sqlite cannot be used \(no such table: spending\)"):
            cache.release(entry)
