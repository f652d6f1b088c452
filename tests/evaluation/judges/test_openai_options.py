"""The options of the judge behind an endpoint: what cannot work is refused before a run, and no key is shown."""

import math

import pytest

from harness.core.errors import UserError
from harness.evaluation.base import JUDGES
from harness.evaluation.judges.openai import OpenAIOptions, check
from harness.experiment.file import merged
from tests.evaluation.fake_openai import judge_of
from tests.evaluation.judges.conftest import KEY

pytestmark = pytest.mark.usefixtures("key")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "tldrr"}, "did you mean 'tldr'"),
        ({"base_url": "localhost:8000"}, "judge.base_url"),
        ({"base_url": "http://localhost:port"}, "judge.base_url"),
        ({"concurrency": 0}, "judge.concurrency must be at least 1"),
        ({"max_retries": -1}, "judge.max_retries"),
        ({"timeout": 0}, "judge.timeout"),
        ({"temperature": -1}, "judge.temperature"),
        ({"max_tokens": 0}, "judge.max_tokens"),
        ({"agreement_pairs": -1}, "judge.agreement_pairs"),
        ({"logprobs": 21}, "judge.logprobs must be at least 0 and at most 20, got 21"),
        ({"extra": {"model": "other"}}, "judge.extra may not set 'model'"),
        ({"requests_per_minute": 0.0}, "judge.requests_per_minute must be a number above 0"),
        ({"timeout": math.inf}, "judge.timeout must be a number above 0, got inf"),
        ({"price": {"input": 1.0}}, "judge.price must hold input and output"),
        ({"price": {"input": 1.0, "output": -1.0}}, "judge.price.output must be a number at least 0, got -1.0"),
        ({"budget_usd": 0.0}, "judge.budget_usd must be a number above 0"),
        ({"budget_usd": 1}, "no price is known for 'judge'"),
        ({"budget_usd": 1, "price": {"input": 1.0, "output": 1.0}, "max_tokens": None}, "set judge.max_tokens"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_starts(options, message):
    JUDGES.get("openai").check(OpenAIOptions("judge"))
    with pytest.raises(UserError, match=message):
        JUDGES.get("openai").check(OpenAIOptions("judge", **options))


@pytest.mark.parametrize("bad", ["", "  ", "sk-schlüssel", "sk-a\x07b"])
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(monkeypatch, bad):
    monkeypatch.setenv("OPENAI_API_KEY", bad)
    with pytest.raises(UserError, match="OPENAI_API_KEY") as caught:
        JUDGES.get("openai").ready(OpenAIOptions("judge"))
    assert "sk-" not in str(caught.value)


def test_a_key_that_is_not_set_is_said_before_a_run():
    JUDGES.get("openai").ready(OpenAIOptions("judge"))
    with pytest.raises(UserError, match="NO_SUCH_KEY holds no key"):
        JUDGES.get("openai").ready(OpenAIOptions("judge", key_env="NO_SUCH_KEY"))


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{KEY}@host/v1",
        f"https://{KEY}@host/v1",
        f"https://host/v1?key={KEY}",
        f"https://host/v1#{KEY}",
        f"https://host/{KEY}/v1",
        f"//{KEY}",
    ],
)
@pytest.mark.parametrize("place", ["base_url", "OPENAI_BASE_URL"])
def test_a_url_that_holds_a_secret_is_refused_without_showing_it(monkeypatch, url, place):
    options = OpenAIOptions("judge", base_url=url) if place == "base_url" else OpenAIOptions("judge")
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(UserError, match=rf"{place} holds .*key_env") as caught:
        JUDGES.get("openai").check(options)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://host/v1 x", "http://host/v1\n", "http://[::1/v1", "ftp://host/v1", "http:///v1"]
)
def test_a_url_that_cannot_be_asked_is_refused(url):
    with pytest.raises(UserError, match=r"judge\.base_url .* is not of the form"):
        JUDGES.get("openai").check(OpenAIOptions("judge", base_url=url))


@pytest.mark.parametrize(
    "value",
    [KEY, "gsk_abcdefGHIJKL0123456789", "AIzaSyA-0123456789", "0123456789abcdef0123456789abcdef", "AKIA0123456789", ""],
)
def test_a_key_in_the_place_of_its_name_is_never_shown(value):
    kind, options = JUDGES.get("openai"), OpenAIOptions("judge", key_env=value)
    with pytest.raises(UserError, match="key_env") as caught:
        kind.check(options)
        kind.ready(options)
    assert not value or value not in str(caught.value)


def test_a_template_without_a_placeholder_is_refused(tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("Compare {response_1} with the other, for {prompt}.")
    with pytest.raises(UserError, match=r"own\.txt lacks \{response_2\}"):
        check(OpenAIOptions("judge", template=str(own)))


def test_a_task_whose_template_is_unknown_is_refused(server, make_context):
    with pytest.raises(UserError, match="judge template 'hhh'"):
        judge_of(server, make_context(template="hhh"))


@pytest.mark.parametrize(("options", "message"), [({}, "model"), ({"model": "m", "modle": 1}, "did you mean 'model'")])
def test_options_come_from_the_experiment_file(options, message):
    assert merged(JUDGES.get("openai").options, {"model": "m", "temperature": None}, "judge").temperature is None
    with pytest.raises(UserError, match=message):
        merged(JUDGES.get("openai").options, options, "judge")
