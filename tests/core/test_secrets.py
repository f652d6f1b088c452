"""Secrets in the environment: which values count, and that they are found in any value."""

import pytest

from harness.core.secrets import all_masked, masked, secret_in, secrets

SECRET = "s3cr3t-0123456789"


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET", "PGPASSWORD", "mykey", "CREDENTIALS"])
def test_a_variable_counts_by_its_name(monkeypatch, name):
    monkeypatch.setenv(name, f" {SECRET}\n")
    assert masked(f"Bearer {SECRET}!") == f"Bearer ({name})!"
    assert secret_in(f"a{SECRET}b") == name


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "KEYBOARD_LAYOUT", "HOSTNAME"])
def test_other_variables_do_not(monkeypatch, name):
    monkeypatch.setenv(name, SECRET)
    assert masked(SECRET) == SECRET and secret_in(SECRET) is None


def test_words_and_paths_are_no_secrets(monkeypatch, tmp_path):
    monkeypatch.setenv("MY_KEY", "dummy")
    monkeypatch.setenv("SSH_KEY", str(tmp_path))
    assert not {"dummy", str(tmp_path)} & set(secrets())


def test_a_secret_within_another_leaves_nothing_of_it(monkeypatch):
    monkeypatch.setenv("A_TOKEN", SECRET)
    monkeypatch.setenv("B_TOKEN", f"{SECRET}-and-more")
    assert masked(f"{SECRET}-and-more") == "(B_TOKEN)"


def test_strings_and_keys_at_any_depth_are_masked(monkeypatch):
    monkeypatch.setenv("A_TOKEN", SECRET)
    value = {"a": [{"b": f"x {SECRET}"}, 1, None, True], SECRET: 0.5}
    assert all_masked(value) == {"a": [{"b": "x (A_TOKEN)"}, 1, None, True], "(A_TOKEN)": 0.5}
