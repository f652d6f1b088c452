"""What must not be written down of an endpoint's text."""

from harness.evaluation.endpoint.options import secrets_of, without


def test_a_secret_that_begins_with_the_key_is_removed_whole(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    monkeypatch.setenv("HF_TOKEN", "sk-0123456789-and-more")
    text = "sk-0123456789-and-more, sk-0123456789"
    assert without(secrets_of("OPENAI_API_KEY"), text) == "(key), (key)"


def test_a_short_key_is_a_dummy_that_may_stand_in_ordinary_text(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    assert without(secrets_of("OPENAI_API_KEY"), "none of them") == "none of them"
