"""An experiment judged through an OpenAI-compatible endpoint: nothing is lost, paid twice, or given away."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.evaluation.fake_openai import FakeOpenAI, Reply, Request
from tests.tiny_experiment import run, write_experiment

KEY = "sk-a-secret-of-this-test"


@pytest.fixture
def experiment(tmp_path, tiny_model, tiny_encoder, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)

    def write(server: FakeOpenAI):
        judge = {"kind": "openai", "model": "judge-1", "base_url": server.url, "key_env": "JUDGE_KEY", "max_retries": 0}
        return write_experiment(tmp_path, tiny_model, tiny_encoder, losses={"dpo": {}}, judge=judge)

    return write


def leaderboard(tmp_path) -> pd.DataFrame:
    return pd.read_csv(tmp_path / "results" / "tiny" / "leaderboard.csv")


def longer(request: Request) -> Reply:
    first, second = request.responses
    return Reply(f"Preferred: {1 if len(first) >= len(second) else 2}")


@pytest.mark.slow
def test_the_judge_s_verdicts_make_the_win_rates_and_are_paid_once(experiment, tmp_path, capsys, caplog):
    """A judge that always prefers the longer text, in both orders: the baseline wins, and nothing flips."""
    with FakeOpenAI(longer) as server:
        path = experiment(server)
        assert run(path) == 0
        frame = leaderboard(tmp_path)
        assert frame.judge.str.startswith("openai:judge-1:").all()
        assert (frame.coverage == 1).all() and (frame.flip_rate.dropna() == 0).all()
        asked = len(server.requests)
        assert 0 < asked <= 2 * 2 * (6 + 4)
        assert run(path) == 0
        assert len(server.requests) == asked, "a second run asks nothing"
    written = [p for p in (tmp_path / "results").rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]
    assert written == [], "the key is in no file"
    printed = capsys.readouterr()
    assert KEY not in printed.out + printed.err + caplog.text, "nor was it said"


@pytest.mark.slow
def test_a_failed_judgement_is_missing_and_the_next_run_asks_for_it_alone(experiment, tmp_path, capsys):
    broken = {"on": True, "seen": 0}

    def answer(request):
        """Every third answer is an error, and all repeat the key."""
        broken["seen"] += 1
        if broken["on"] and broken["seen"] % 3 == 0:
            return Reply(status=500, body={"error": {"message": f"{KEY} is out of luck"}})
        return Reply(f"{KEY}\nPreferred: 1")

    with FakeOpenAI(answer) as server:
        path = experiment(server)
        assert run(path) == 1
        assert capsys.readouterr().out.splitlines()[-1].startswith("incomplete: hh dpo beta=0.1 seed=0: judge-")
        frame = leaderboard(tmp_path)
        assert (frame.coverage < 1).any()
        incomplete = frame[frame.coverage < 1]
        assert (incomplete.status == "incomplete").all() and incomplete["rank"].isna().all()
        assert (frame.win_rate.dropna() == 50).all(), "position 1 always wins: every verdict is a tie, a failure none"
        before, broken["on"] = len(server.requests), False
        assert run(path) == 0
        frame = leaderboard(tmp_path)
        assert (frame.coverage == 1).all() and (frame.status == "ok").all()
        assert len(server.requests) - before <= before // 3 + 1, "only what was missing is asked"
    written = [p for p in (tmp_path / "results").rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]
    assert written == [], "whatever the endpoint repeats, the key is in no file"


@pytest.mark.slow
@pytest.mark.parametrize("reply", [Reply(status=401, body={"error": {"message": "no such key"}}), None])
def test_an_endpoint_that_answers_nothing_fails_the_cells_with_its_reason(experiment, tmp_path, capsys, reply):
    with FakeOpenAI(lambda request: reply) as server:
        path = experiment(server)
        if reply is not None:
            assert run(path) == 1
    if reply is None:  # nobody listens there any more
        assert run(path) == 1
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(
        "failed: hh dpo beta=0.1 seed=0: judge-alpaca_eval: no verdict on any of 4 responses (4 failed"
    )
    assert KEY not in said and leaderboard(tmp_path).status.str.startswith("failed: seed 0, judge-").all()
