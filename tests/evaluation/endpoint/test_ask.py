"""Asking an endpoint that fails in every way: each question gets exactly one answer, paid for once."""

import itertools
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import pytest

from harness.core.prompt import Message
from harness.core.records import Usage
from harness.evaluation.base import Comparison, Forecast
from harness.evaluation.endpoint.cache import CACHE_FILE, AnswerCache
from tests.conftest import REPOSITORY
from tests.evaluation.fake_openai import Reply, judge_of, prefers

PRICE = {"input": 1000.0, "output": 0.0}  # USD per million tokens: 100 prompt tokens cost 10 cents


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "any-word")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def judge(server, make_context):
    def judge(comparisons, **options):
        return judge_of(server, make_context(), **options).judge(comparisons, lambda done: None)

    return judge


def questions(n: int) -> list[Comparison]:
    """Return comparisons of which the policy wins the even-numbered ones."""
    sides = ("a good answer {}", "a poor answer {}")
    return [
        Comparison(
            str(i), (Message("user", f"question {i}"),), *(s.format(i) for s in sides[:: 1 if i % 2 == 0 else -1])
        )
        for i in range(n)
    ]


def right(judgements) -> list[bool]:
    return [j.status == "ok" and j.preference == float(int(j.id) % 2 == 0) for j in judgements]


class Storm:
    """An endpoint that fails 3 of 10 requests, cycling through these faults; it counts its answers to each question."""

    FAULTS = (
        Reply(status=429, headers={"Retry-After": "0.01"}),
        Reply(status=429, headers={}),
        Reply(status=500),
        Reply(status=503),
        Reply(reset=True),
        Reply("Preferred: 1", keep=40),
        Reply("Preferred: 1", delay=1.5),
        Reply(body='{"choices": [{"mess', content_type="application/json"),
        Reply(body={"id": "x", "choices": []}),
        Reply(refusal="I would rather not."),
    )

    def __init__(self):
        self.seen = 0
        self.faults = cycle(self.FAULTS)
        self.met = Counter()
        self.answered = Counter()

    def __call__(self, request) -> Reply:
        self.seen += 1
        if self.seen % 10 in (0, 3, 6):
            fault = next(self.faults)
            self.met[self.FAULTS.index(fault)] += 1
            return fault
        self.answered[request.prompt, request.responses] += 1
        label = 1 if "good" in request.responses[0] else 2
        sure = {str(label): math.log(0.9), str(3 - label): math.log(0.1)}
        return Reply(f"Preferred: {label}", tokens=[("Preferred:", {}), (f" {label}", sure)] if self.seen % 2 else None)


@pytest.mark.slow
def test_a_storm_of_faults_costs_no_judgement_and_counts_none_wrongly(server, judge):
    """Preferences are graded if the endpoint gives logprobs, for both orders, one order or none."""
    server.respond = storm = Storm()
    settings = {"max_retries": 6, "timeout": 1.0, "concurrency": 8}
    comparisons = questions(50)
    first = judge(comparisons, **settings)
    assert len(storm.met) == len(Storm.FAULTS), "every fault was met"
    assert {j.status for j in first} == {"ok", "refused"}, "only what a retry does not mend is missing"
    assert all(j.preference is None for j in first if j.status == "refused")
    assert judge(comparisons, **settings) == first, "whole replies are paid for once, refusals too"
    judgements = first
    for _ in range(5):
        if all(j.status == "ok" for j in judgements):
            break
        judgements = judge(comparisons, ask_again=True, **settings)
    assert [j.id for j in judgements] == [c.id for c in comparisons]
    assert {round(p if int(j.id) % 2 == 0 else 1 - p, 6) for j in judgements for p in [j.preference]} <= {
        1.0,
        0.95,
        0.9,
    }
    assert {j.flipped for j in judgements} == {False}
    assert set(storm.answered.values()) == {1} and len(storm.answered) == 100, "no answer was paid for twice"


def test_retry_after_is_honoured(server, judge):
    times = []

    def respond(request):
        times.append(time.monotonic())
        if len(times) == 1:
            return Reply(status=429, headers={"Retry-After": "1"})
        return Reply("Preferred: 1")

    server.respond = respond
    judge(questions(1), both_orders=False, max_retries=1)
    assert times[1] - times[0] >= 1.0, "longer than the half second that is waited without the header"


JUDGE = """
import sys
from pathlib import Path
from harness.evaluation.base import JudgeContext
from harness.core.store import Store
from tests.evaluation.endpoint.test_ask import judge_of, questions, right
class Server: url = sys.argv[1]
root = Path(sys.argv[2])
context = JudgeContext("hh", [], [], "", None, "none", Store(root / "store"), root / "cache", "tests")
judged = judge_of(Server, context, concurrency=4).judge(questions(40), lambda done: None)
print(sum(right(judged)))
"""


def start(server, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", JUDGE, server.url, str(folder)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_and_run_again_only_what_was_under_way_is_paid_twice(server, tmp_path, make_context):
    answered = Counter()

    def respond(request):
        answered[request.prompt, request.responses] += 1
        reply = prefers("good")(request)
        reply.delay = 0.02
        return reply

    server.respond = respond
    process = start(server, tmp_path)
    while sum(answered.values()) < 30:
        time.sleep(0.002)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    judged = judge_of(server, make_context(), concurrency=4).judge(questions(40), lambda done: None)
    assert all(right(judged))
    assert len(answered) == 80
    assert max(answered.values()) <= 2 and sum(answered.values()) <= 80 + 4


@pytest.mark.slow
def test_two_processes_share_one_cache(server, tmp_path):
    """The second process starts after 30 answers; the first, with 4 requests at a time, then waits for it."""
    number, both_ask = itertools.count(1), threading.Event()

    def respond(request):
        asked = next(number)
        if asked > 30 + 4:
            both_ask.set()
        if asked > 30:
            assert both_ask.wait(120)
        return prefers("good")(request)

    server.respond = respond
    first = start(server, tmp_path)
    while len(server.requests) < 30 + 4:
        time.sleep(0.002)
        assert first.poll() is None
    second = start(server, tmp_path)
    assert [int(p.communicate(timeout=300)[0]) for p in (first, second)] == [40, 40]
    before = len(server.requests)
    assert before <= 160 - 30
    third = start(server, tmp_path)
    assert int(third.communicate(timeout=300)[0]) == 40
    assert len(server.requests) == before


def test_a_budget_is_never_passed_and_what_was_paid_is_kept(server, judge, make_context):
    """Each answer costs 10 cents, but its upper bound before asking is over a dollar."""
    settings = {"price": PRICE, "max_tokens": 10, "concurrency": 8}
    first = judge(questions(40), budget_usd=3.0, **settings)
    with AnswerCache(make_context().cache / CACHE_FILE) as cache:
        assert 1.0 < cache.spent("tests") <= 3.0
    stopped = [j for j in first if j.status == "failed"]
    assert stopped and all("budget_usd of 3 is spent" in j.detail for j in stopped)
    assert sum(right(first)) + len(stopped) == 40
    paid = len(server.requests)
    judge(questions(40), budget_usd=3.0, **settings)
    assert len(server.requests) == paid, "the budget is that of all runs together"
    assert all(right(judge(questions(40), budget_usd=30.0, **settings)))
    assert len(server.requests) == 80


def test_two_runs_on_one_budget_do_not_pass_it_together(server, make_context):
    """Each request may cost 1.3 USD, so that no more than two of both runs may be under way at a time."""
    honest = server.respond

    def respond(request):
        reply = honest(request)
        reply.delay = 0.02
        return reply

    server.respond = respond
    settings = {"price": PRICE, "max_tokens": 10, "concurrency": 8, "budget_usd": 3.0}

    def run(start: int) -> list:
        return judge_of(server, make_context(), **settings).judge(questions(40)[start::2], lambda done: None)

    with ThreadPoolExecutor(2) as runs:
        first, second = runs.map(run, (0, 1))
    assert server.busiest <= 2
    with AnswerCache(make_context().cache / CACHE_FILE) as cache:
        assert 1.5 < cache.spent("tests") <= 3.0
        assert cache.spent("tests", unanswered_only=True) == 0
    paid = len(server.requests)
    assert all(j.status in ("ok", "failed") for j in first + second)
    assert all(right(judge_of(server, make_context(), **settings | {"budget_usd": 30.0}).judge(questions(40), print)))
    assert len(server.requests) == 80 > paid


def test_what_a_process_had_under_way_when_it_died_counts_at_its_most(server, judge, make_context):
    """The endpoint may have charged for it. The reason of what is not asked says how much that is."""
    with AnswerCache(make_context().cache / CACHE_FILE) as cache:
        assert cache.set_aside("tests", "judge", Usage(1500, 0, 1.5), budget=3.0)
        assert cache.set_aside("tests", "judge", Usage(1500, 0, 1.5), budget=3.0)
        assert cache.set_aside("tests", "judge", Usage(1, 0, 0.001), budget=3.0) is None
        assert cache.set_aside("others", "judge", Usage(1, 0, 0.001), budget=3.0)
    (judgement,) = judge(questions(1), price=PRICE, max_tokens=10, budget_usd=3.0)
    assert judgement.detail == (
        "policy first: not asked: budget_usd of 3 is spent or set aside "
        "(3 USD for requests of other or interrupted processes)"
    )
    assert server.requests == []


def test_a_request_without_an_answer_costs_nothing(server, judge, make_context):
    server.respond = lambda request: Reply(status=500)
    judge(questions(2), price=PRICE, max_tokens=10, budget_usd=9.0)
    with AnswerCache(make_context().cache / CACHE_FILE) as cache:
        assert cache.spent("tests") == 0


def test_an_answer_without_a_verdict_is_paid_for_once_unless_asked_again(server, judge):
    server.respond = lambda request: Reply("I like both.")
    first = judge(questions(2))
    assert {j.status for j in first} == {"unparsable"}
    server.respond = prefers("good")
    assert judge(questions(2)) == first and len(server.requests) == 4
    assert all(right(judge(questions(2), ask_again=True))) and len(server.requests) == 8
    assert all(right(judge(questions(2), ask_again=True))) and len(server.requests) == 8


def test_a_reply_is_read_anew_by_a_mended_reader_without_paying(server, judge, make_context, tmp_path):
    """The template's file says how an answer is read; what it asks stays the same."""
    server.respond = lambda request: Reply("In short, choose 1")
    own = tmp_path / "own.txt"
    for verdict, status in (("Choice:", "unparsable"), ("In short, choose", "ok")):
        own.write_text(f"---\nverdict: '{verdict}'\n---\n{{prompt}} {{response_1}} {{response_2}}")
        (judgement,) = judge(questions(1), both_orders=False, template=str(own))
        assert (judgement.status, len(server.requests)) == (status, 1)


def test_an_unusable_answer_costs_as_much_and_one_without_usage_is_booked_at_its_most(server, judge, make_context):
    settings = {"price": PRICE, "both_orders": False, "max_tokens": 10}
    server.respond = lambda request: Reply("?")
    judge(questions(2), **settings)
    with AnswerCache(make_context().cache / CACHE_FILE) as cache:
        assert cache.spent("tests") == pytest.approx(0.2)
    server.respond = lambda request: Reply("Preferred: 1", usage=None)
    (judgement,) = judge(questions(3)[2:], **settings)
    assert judgement.usage.prompt_tokens >= len(server.requests[-1].content)
    assert judgement.usage.usd == pytest.approx(judgement.usage.prompt_tokens / 1000)


def test_usage_is_recorded_with_each_judgement_also_from_the_cache(judge):
    for _ in range(2):
        (judgement,) = judge(questions(1), price=PRICE)
        assert judgement.usage == Usage(200, 20, pytest.approx(0.2))
    (judgement,) = judge(questions(2)[1:])
    assert judgement.usage == Usage(200, 20, None), "no price is known for this model"


def test_a_forecast_knows_what_is_kept_and_makes_no_call(server, judge, make_context):
    judge(questions(2))
    before = len(server.requests)
    asked = judge_of(server, make_context(), price={"input": 1.0, "output": 10.0}, max_tokens=100)
    costs = asked.forecast([*questions(4), Comparison("x", (), "same", "same")])
    assert len(server.requests) == before
    assert (costs.calls, costs.kept, costs.completion_tokens) == (8, 0, 800), "another limit is another question"
    costs = judge_of(server, make_context(), price={"input": 1.0, "output": 10.0}).forecast(questions(4))
    assert (costs.calls, costs.kept, costs.completion_tokens) == (8, 4, 4 * 512)
    assert 4 * 200 < costs.prompt_tokens < 4 * 500
    assert costs.usd == pytest.approx((costs.prompt_tokens + 10 * 4 * 512) / 1e6)
    assert judge_of(server, make_context()).forecast(questions(4)).usd is None
    assert Forecast() + costs == costs


def test_no_more_attempts_than_the_rate_allows(server, judge):
    times = []

    def respond(request):
        times.append(time.monotonic())
        return Reply(status=500, headers={"retry-after-ms": "1"}) if len(times) % 2 else prefers("good")(request)

    server.respond = respond
    judge(questions(5), requests_per_minute=1200, max_retries=1, both_orders=False, concurrency=1)
    assert len(times) == 10
    assert times[-1] - times[0] >= 9 * 0.05 * 0.9


def test_tokens_per_minute_hold_requests_back(server, judge):
    started = time.monotonic()
    judge(questions(3), tokens_per_minute=60_000, both_orders=False)
    size = len(str(server.requests[0].body)) / 4
    assert time.monotonic() - started >= 2 * size / 1000 * 0.8


def test_a_key_that_is_not_accepted_ends_the_asking(server, judge):
    server.respond = lambda request: Reply(status=401, body={"error": {"message": "no"}})
    judgements = judge(questions(30), concurrency=2)
    assert {j.status for j in judgements} == {"failed"}
    assert all("does not accept the key" in j.detail for j in judgements)
    assert len(server.requests) <= 2


def test_an_endpoint_that_refuses_logprobs_is_asked_without_them(server, judge):
    def respond(request):
        if "logprobs" in request.body:
            return Reply(status=400, body={"error": {"message": "logprobs is not supported with this model"}})
        return prefers("good")(request)

    server.respond = respond
    assert all(right(judge(questions(20), concurrency=2)))
    assert sum("logprobs" in request.body for request in server.requests) <= 2


def test_one_order_costs_half_and_says_nothing_of_flips(server, judge):
    judgements = judge(questions(20), both_orders=False)
    assert all(right(judgements)) and len(server.requests) == 20
    assert {(j.flipped, j.first) for j in judgements} == {(None, None)}
    assert {"good" in request.responses[0] for request in server.requests} == {True, False}


def test_equal_questions_are_asked_once(server, judge):
    twice = [Comparison("0", (), "good", "poor"), Comparison("2", (), "good", "poor")]
    assert all(right(judge(twice)))
    assert len(server.requests) == 2
