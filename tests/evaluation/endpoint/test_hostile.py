"""An endpoint that answers anything at all: whatever it sends is one judgement without a preference, or a sound one."""

import copy
import gzip
import json
import math
import random
import re
import socketserver
import threading
import time

import pytest

from harness.core.prompt import Message
from harness.core.record_files import read_records, write_records
from harness.core.records import COUNTED, Judgement
from harness.evaluation.base import Comparison
from tests.evaluation.fake_openai import judge_of

DEEP = 200_000  # brackets


def chat(content: object = "Fine.\nPreferred: 1", **changes) -> dict:
    """Return a chat completion; `logprobs` and `finish_reason` are the choice's, other changes the completion's."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    choice |= {name: changes.pop(name) for name in ("logprobs", "finish_reason") if name in changes}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage, **changes}


def response(body: object, *, head: str = "200 OK", length: object = None, more: str = "") -> bytes:
    """Return an HTTP response; `body` is bytes, or an object that becomes JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    size = len(data) if length is None else length
    # The server closes each connection: a client that is not told may ask on it once more in that moment.
    lines = f"Content-Type: application/json\r\nContent-Length: {size}\r\nConnection: close\r\n{more}"
    return f"HTTP/1.1 {head}\r\n{lines}\r\n".encode() + data


def graded(logprob: object, token: object = "1") -> dict:
    """Return the log-probs of an answer whose last token is the label."""
    top = [{"token": token, "logprob": logprob}, {"token": "2", "logprob": -1.0}]
    return {"content": [{"token": "Fine.\nPreferred: ", "top_logprobs": []}, {"token": "1", "top_logprobs": top}]}


def used(prompt: object, completion: object = 10) -> dict:
    return chat(usage={"prompt_tokens": prompt, "completion_tokens": completion})


OK, UNPARSABLE, REFUSED, FAILED = "ok", "unparsable", "refused", "failed"
BODIES = {
    # The usage is the endpoint's word alone: one that cannot be true counts as none, and the verdict stands.
    **{
        f"usage {usage!r:.30}": (OK, used(usage))
        for usage in (10**30, 10**4000, -1, 1.5, 100.0, "100", None, True, [], {}, math.nan, math.inf)
    },
    "completion tokens 10^30": (OK, used(10, 10**30)),
    "usage null": (OK, chat(usage=None)),
    "usage a list": (OK, chat(usage=[1, 2])),
    "usage text": (OK, chat(usage="many")),
    # Log-probs of another shape are none; numbers that no log-prob can have show that the endpoint is broken.
    **{
        f"log-prob {value!r:.30}": (FAILED, chat(logprobs=graded(value)))
        for value in (1000, math.nan, math.inf, 10**400)
    },
    **{
        f"log-prob {value!r:.30}": (OK, chat(logprobs=graded(value)))
        for value in ("inf", "-0.1", None, True, [], {}, -(10**400), -math.inf, -9999.0, 1e-7, 0)
    },
    "log-prob of a token that is a number": (OK, chat(logprobs=graded(-0.1, 1))),
    **{
        f"log-probs {value!r:.30}": (OK, chat(logprobs=value))
        for value in (None, "text", 3, [], {}, {"content": "abc"}, {"content": [None]}, {"content": 7})
    },
    # The answer's text.
    **{
        f"content {value!r:.30}": (UNPARSABLE, chat(value))
        for value in (None, "", [], ["Preferred: 1"], {}, 1, 1.0, True, [{"type": "text", "text": "Preferred: 1"}])
    },
    "content with half a surrogate pair": (OK, chat("\ud800 is odd\nPreferred: 1")),
    "verdict with half a surrogate pair": (UNPARSABLE, chat("Preferred: 1\ud800")),
    "content with null bytes": (OK, chat("\x00\x00\nPreferred: 1")),
    "content with escape sequences": (UNPARSABLE, chat("\x1b[2K\x1b[1A\rerror: all fine\x07")),
    "content of 1 MB": (OK, chat("x" * 1_000_000 + "\nPreferred: 1")),
    "a last line of 1 MB": (UNPARSABLE, chat("Preferred: 1" + "*" * 1_000_000 + "x")),
    "1 MB of lines": (UNPARSABLE, chat("*\n" * 500_000)),
    "refusal that is no text": (
        OK,
        chat() | {"choices": [{"message": {"content": "Preferred: 1", "refusal": {"a": 1}}}]},
    ),
    "refusal of 1 MB": (REFUSED, {"choices": [{"message": {"content": None, "refusal": "no " * 300_000}}]}),
    "finish reason that is no text": (OK, chat(finish_reason=["length"])),
    "model that is no text": (OK, chat(model={"a": [1]})),
    "model of 1 MB": (OK, chat(model="m" * 1_000_000)),
    # What is no chat completion.
    **{
        f"JSON {value!r:.30}": (FAILED, value)
        for value in (None, True, 1, "text", [], [1], {}, {"choices": None}, {"choices": {}}, {"choices": []})
    },
    **{f"choice {value!r:.30}": (FAILED, {"choices": [value]}) for value in (None, 1, "text", [])},
    **{f"message {value!r:.30}": (UNPARSABLE, {"choices": [{"message": value}]}) for value in (None, 1, "text", [])},
    "no message": (UNPARSABLE, {"choices": [{}]}),
    "an error with status 200": (FAILED, {"error": {"message": "model overloaded", "code": 503}}),
    "an error that is text": (FAILED, {"error": "model overloaded"}),
    "an error that is deep": (FAILED, b'{"error": ' + b"[" * 900 + b"]" * 900 + b"}"),
    "not JSON": (FAILED, b"<html><body>Bad gateway</body></html>"),
    "half of JSON": (FAILED, json.dumps(chat()).encode()[:60]),
    "JSON twice": (FAILED, 2 * json.dumps(chat()).encode()),
    "not UTF-8": (FAILED, b'{"choices": [{"message": {"content": "\xff\xfe Preferred: 1"}}]}'),
    "UTF-16": (OK, json.dumps(chat()).encode("utf-16")),
    "a byte-order mark": (FAILED, b"\xef\xbb\xbf\xef\xbb\xbf" + json.dumps(chat()).encode()),
    "empty body": (FAILED, b""),
    "a stream of events": (FAILED, b'data: {"choices": []}\n\ndata: [DONE]\n\n'),
    "deep JSON": (FAILED, b"[" * DEEP + b"]" * DEEP),
    "deep JSON in a field": (FAILED, b'{"choices": ' + b'[{"a":' * DEEP + b"1" + b"}]" * DEEP + b"}"),
    "an integer of 5,000 digits": (FAILED, b'{"choices": ' + b"9" * 5000 + b"}"),
    "a body of 17 MB": (FAILED, b" " * (17 << 20) + json.dumps(chat()).encode()),
}
RAW = {
    "a body shorter than it says": (FAILED, response(chat(), length=100_000)),
    "a body longer than it says": (FAILED, response(chat(), length=20)),
    "a negative length": (FAILED, response(chat(), length=-5)),
    "a length that is no number": (FAILED, response(chat(), length="many")),
    "a chunk that is no chunk": (
        FAILED,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + json.dumps(chat()).encode(),
    ),
    "a redirect": (FAILED, response(b"", head="307 Temporary Redirect", more="Location: http://127.0.0.1:9/v1\r\n")),
    "a redirect to itself": (FAILED, response(b"", head="308 Permanent Redirect", more="Location: /v1/x\r\n")),
    "headers of 1 MB": (FAILED, response(chat(), more=f"X-Odd: {'x' * 1_000_000}\r\n")),
    "100,000 headers": (FAILED, response(chat(), more="X-Odd: x\r\n" * 100_000)),
    "a status that is none": (FAILED, response(chat(), head="9999 What")),
    "no HTTP": (FAILED, b"hello\r\n\r\n"),
    "nothing": (FAILED, b""),
    "no content": (FAILED, b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"),
    "gzip that is none": (FAILED, response(b"not gzip", more="Content-Encoding: gzip\r\n")),
    "a small body that grows to 64 MB": (
        FAILED,
        response(gzip.compress(b" " * (64 << 20)), more="Content-Encoding: gzip\r\n"),
    ),
    "an error with a deep body": (FAILED, response(b"[" * DEEP + b"]" * DEEP, head="400 Bad Request")),
    "an error with a body that is a list": (FAILED, response([1, 2], head="400 Bad Request")),
    "an error with a huge code": (FAILED, response({"error": {"code": ["x"] * 100_000}}, head="400 Bad Request")),
    "an error with half a surrogate pair": (FAILED, response({"error": {"message": "\ud800"}}, head="400 Bad Request")),
    "an error of 17 MB": (FAILED, response(b"x" * (17 << 20), head="400 Bad Request")),
}
CASES = {**{name: (status, response(body)) for name, (status, body) in BODIES.items()}, **RAW}


class RawServer(socketserver.ThreadingTCPServer):
    """Answers each question with the bytes that `answer(question)` returns; after an endless one's come drops."""

    allow_reuse_address = daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.asked = 0

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        head = b""
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            head += line
        content = json.loads(self.rfile.read(int(re.search(rb"(?i)content-length: (\d+)", head)[1])))
        question = re.search(r"<prompt-\w+>\n(.*?)\n</prompt", content["messages"][0]["content"], re.DOTALL)[1]
        self.server.asked += 1
        try:
            self.wfile.write(self.server.answer(question))
            while "endless" in question:
                time.sleep(0.02)
                self.wfile.write(b" " if "body" in question else b"X-Odd: x\r\n")
        except OSError:  # the client has closed the connection
            pass


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "any-word")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def question(name: str) -> Comparison:
    return Comparison(name, (Message("user", name),), "one", "other")


def judged(server, context, names, **options) -> dict[str, Judgement]:
    settings = {"price": {"input": 1.0, "output": 1.0}, "both_orders": False, **options}
    judgements = judge_of(server, context, **settings).judge([question(name) for name in names], lambda done: None)
    return {judgement.id: judgement for judgement in judgements}


def outcomes(judgements: dict[str, Judgement]) -> dict[str, tuple]:
    """Return what does not depend on how the client's attempts went."""
    return {name: (judgement.status, judgement.preference) for name, judgement in judgements.items()}


@pytest.mark.slow
def test_whatever_an_endpoint_answers_is_that_one_judgement_s(make_context, tmp_path):
    """Between the hostile answers are honest ones, which all count; all can be written, and read again."""
    honest = [f"honest {i}" for i in range(20)]
    names = [*CASES, *honest]
    random.Random(0).shuffle(names)
    with RawServer(lambda name: CASES.get(name, (OK, response(chat())))[1]) as server:
        told = judged(server, make_context(), names)
        before, missing = server.asked, [name for name in names if told[name].status == FAILED]
        again = judged(server, make_context(), names)
        assert outcomes(again) == outcomes(told), "and the same again"
        assert server.asked == before + len(missing), "only what did not arrive is asked again"
    assert list(told) == names
    wrong = {n: (j.status, j.detail) for n, j in told.items() if j.status != CASES.get(n, (OK, None))[0]}
    assert wrong == {}
    for judgement in told.values():
        if judgement.status in COUNTED:
            assert judgement.detail == "" and 0 <= judgement.preference <= 1
            assert 0 <= judgement.usage.prompt_tokens < 10_000 and 0 <= judgement.usage.usd < 0.1
        else:
            assert judgement.preference is None
            assert judgement.detail.isprintable() and 10 < len(judgement.detail) <= 250
    write_records(tmp_path, Judgement, told.values())
    assert read_records(Judgement, tmp_path) == list(told.values())


VALUES = (
    None,
    True,
    -1,
    10**30,
    1.5,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "Preferred: 2",
    "\ud800",
    [],
    {},
    [[]],
    [None],
)


def mutants(count: int) -> list[object]:
    """Return completions with a few nodes replaced, removed or repeated, always the same ones."""
    chance = random.Random(0)
    made = []
    for _ in range(count):
        completion = copy.deepcopy(chat(logprobs=graded(-0.2)))
        for _ in range(chance.randint(1, 3)):
            node = completion
            while True:
                keys = list(node) if isinstance(node, dict) else list(range(len(node)))
                if not keys:
                    break
                key = chance.choice(keys)
                if isinstance(node[key], (dict, list)) and chance.random() < 0.7:
                    node = node[key]
                    continue
                if chance.random() < 0.2:
                    del node[key]
                else:
                    node[key] = copy.deepcopy(chance.choice(VALUES))
                break
        made.append(completion)
    return made


def test_no_mutant_of_a_completion_gives_a_preference_out_of_bounds(make_context):
    bodies = mutants(200)
    with RawServer(lambda name: response(bodies[int(name)])) as server:
        told = judged(server, make_context(), [str(i) for i in range(len(bodies))])
    assert {j.status for j in told.values()} == {OK, UNPARSABLE, FAILED}
    for judgement in told.values():
        sound = judgement.preference is not None and 0 <= judgement.preference <= 1
        assert sound if judgement.status in COUNTED else judgement.preference is None and judgement.detail


def test_an_endless_answer_ends_with_the_timeout(make_context):
    """Though each of its bytes comes in time."""
    heads = {
        "endless body": b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
        "endless head": b"HTTP/1.1 200 OK\r\n",
    }
    with RawServer(heads.get) as server:
        told = judged(server, make_context(), heads, timeout=0.3)
    for judgement in told.values():
        assert judgement.status == FAILED and "no whole answer after 0.3 seconds" in judgement.detail


def test_a_redirect_takes_no_key_along(make_context):
    """Not even to the same machine."""
    with RawServer(lambda name: response(chat())) as other:
        more = f"Location: {other.url}/chat/completions\r\n"
        with RawServer(lambda name: response(b"", head="307 Temporary Redirect", more=more)) as server:
            told = judged(server, make_context(), ["x"])
        assert other.asked == 0
    assert told["x"].status == FAILED and "307" in told["x"].detail
