"""What is kept of an endpoint's answers: each is paid for once, and no key is kept with it."""

import json
import logging
import math
import sqlite3
import stat
import zlib

import pytest

from harness.core.errors import UserError
from harness.core.prompt import Message
from harness.evaluation.base import Comparison
from harness.evaluation.endpoint.cache import CACHE_FILE
from tests.evaluation.fake_openai import FakeOpenAI, Reply, judge_of, prefers
from tests.evaluation.judges.conftest import GOOD_FIRST, GOOD_SECOND, KEY, PROMPT

pytestmark = pytest.mark.usefixtures("key")
OTHER = "hf_another-secret"


def test_a_second_run_makes_no_calls_and_gives_the_same(server, ask):
    first = ask(GOOD_FIRST, GOOD_SECOND)
    calls = len(server.requests)
    assert ask(GOOD_FIRST, GOOD_SECOND) == first
    assert len(server.requests) == calls == 4


def test_swapped_sides_are_the_same_two_requests(server, ask):
    ask(GOOD_FIRST)
    (judgement,) = ask(Comparison("c", PROMPT, GOOD_FIRST.baseline, GOOD_FIRST.response))
    assert judgement.preference == 0.0
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "change",
    [{"model": "other"}, {"temperature": 1.0}, {"max_tokens": 99}, {"template": "tldr"}],
    ids=["model", "temperature", "max_tokens", "template"],
)
def test_whatever_changes_the_answer_is_asked_anew(server, ask, change):
    ask(GOOD_FIRST)
    ask(GOOD_FIRST, **change)
    assert len(server.requests) == 4


def test_settings_that_change_no_answer_ask_nothing_anew(server, ask):
    ask(GOOD_FIRST)
    ask(GOOD_FIRST, concurrency=1, timeout=5, max_retries=1)
    assert len(server.requests) == 2


def test_another_prompt_and_another_endpoint_are_asked_anew(server, ask, make_context):
    ask(GOOD_FIRST)
    ask(Comparison("a", (Message("user", "Another?"),), GOOD_FIRST.response, GOOD_FIRST.baseline))
    assert len(server.requests) == 4
    with FakeOpenAI(prefers("poor")) as other:
        (judgement,) = judge_of(other, make_context()).judge([GOOD_FIRST], lambda done: None)
        assert judgement.preference == 0.0
        assert len(other.requests) == 2


def test_an_interrupted_run_keeps_the_answers_that_it_had(server, make_context):
    comparisons = [Comparison(str(i), PROMPT, f"a good answer {i}", f"a poor answer {i}") for i in range(6)]
    done = []

    def interrupt(count):
        done.append(count)
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge_of(server, make_context(), concurrency=1).judge(comparisons, interrupt)
    with sqlite3.connect(make_context().cache / CACHE_FILE) as database:
        (kept,) = database.execute("SELECT COUNT(*) FROM replies").fetchone()
    assert kept >= 6
    before = len(server.requests)
    judgements = judge_of(server, make_context()).judge(comparisons, lambda done: None)
    assert len(server.requests) - before == 12 - kept
    assert [j.preference for j in judgements] == [1.0] * 6


def test_the_key_is_in_no_file_no_judgement_and_no_log(server, ask, make_context, monkeypatch, tmp_path, caplog):
    """Not even if the endpoint repeats it in an error or an answer."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", OTHER)  # of the same environment, though not the endpoint's
    label = {True: 1, False: 2}
    server.respond = lambda request: Reply(f"{KEY} {OTHER}\nPreferred: {label['good' in request.responses[0]]}")
    judgements = ask(GOOD_FIRST)
    escaped = "".join(f"\\u{ord(c):04x}" for c in KEY)
    tokens = [(part, {part: -1.0, KEY: -2.0}) for part in (KEY[:9], KEY[9:], "\nPreferred: ", "1")]
    for reply in (
        Reply(status=400, body={"error": {"message": f"I dislike {KEY}"}}),
        Reply(status=401, body={"error": {"message": f"Incorrect key {KEY}"}}),
        Reply(refusal=f"no {KEY}"),
        Reply(f"what is {KEY}?"),
        Reply(KEY + "." * 70),  # the end that is quoted begins within the key
        Reply(f"{KEY}\nPreferred: 1", tokens=tokens, finish_reason=KEY),
        Reply(body=f'{{"choices": [{{"message": {{"content": "{escaped}\\nPreferred: 1"}}}}], "model": "{escaped}"}}'),
    ):
        server.respond = lambda request, reply=reply: reply
        judgements += ask(Comparison("d", PROMPT, f"{len(judgements)} good", "poor"))
    statuses = ["ok", "failed", "failed", "refused", "unparsable", "unparsable", "tie", "tie"]
    assert [j.status for j in judgements] == statuses
    assert KEY not in repr(judgements) and KEY[9:] not in repr(judgements)
    assert KEY not in caplog.text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert make_context().cache / CACHE_FILE in files
    with sqlite3.connect(make_context().cache / CACHE_FILE) as database:
        replies = [str(zlib.decompress(reply)) for (reply,) in database.execute("SELECT reply FROM replies")]
    for written in (*replies, *(str(path.read_bytes()) for path in files)):
        assert KEY not in written and KEY[9:] not in written and OTHER not in written


def test_the_cache_keeps_the_whole_reply_and_the_model_that_served_it(server, ask, make_context):
    """Without whatever else the endpoint sends."""
    sure = {"1": -0.1, "2": -math.inf}
    server.respond = lambda request: Reply("Preferred: 1", tokens=[("Preferred: ", {}), ("1", sure)])
    ask(GOOD_FIRST, both_orders=False)
    with sqlite3.connect(make_context().cache / CACHE_FILE) as database:
        ((reply, served_by),) = database.execute("SELECT reply, served_by FROM replies").fetchall()
        (mode,) = database.execute("PRAGMA journal_mode").fetchone()
    alternatives = [{"token": "1", "logprob": -0.1}, {"token": "2", "logprob": -math.inf}]
    content = [{"token": "Preferred: ", "top_logprobs": []}, {"token": "1", "top_logprobs": alternatives}]
    assert json.loads(zlib.decompress(reply)) == {
        "message": {"content": "Preferred: 1", "refusal": ""},
        "finish_reason": "stop",
        "logprobs": {"content": content},
    }
    assert (served_by, mode) == ("judge-2026", "wal")


def test_answers_are_their_owner_s_alone(server, ask, make_context):
    ask(GOOD_FIRST)
    file = make_context().cache / CACHE_FILE
    with sqlite3.connect(file) as database:
        database.execute("BEGIN IMMEDIATE")  # makes SQLite's other files
        database.execute("DELETE FROM replies")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
    assert modes == dict.fromkeys([file.name, f"{file.name}-wal", f"{file.name}-shm"], 0o600)
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_damaged_reply_is_asked_again_and_a_damaged_usage_too(server, ask, make_context):
    ask(GOOD_FIRST)
    damages = ["reply = 'x'", "reply = x'00'", f"reply = x'{zlib.compress(b'[1]').hex()}'", "usd = 'much'"]
    damages += [f"reply = x'{zlib.compress(b'[' * 100_000).hex()}'", "prompt_tokens = 'many'"]
    for damage in damages:
        with sqlite3.connect(make_context().cache / CACHE_FILE) as database:
            database.execute(f"UPDATE replies SET {damage} WHERE key = (SELECT key FROM replies LIMIT 1)")
        database.close()
        before = len(server.requests)
        (judgement,) = ask(GOOD_FIRST)
        assert (judgement.preference, len(server.requests) - before) == (1.0, 1), damage


def test_a_damaged_cache_is_the_users_to_mend(ask, make_context):
    path = make_context().cache / CACHE_FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(UserError, match=r"judgements\.sqlite cannot be used"):
        ask(GOOD_FIRST)
