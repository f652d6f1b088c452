"""Settings that name nothing or make no sense are refused in one clear line, before anything is written."""

from __future__ import annotations

import pytest

from tests.cli.conftest import task


def test_an_unknown_loss_suggests_the_nearest(refuses):
    assert "unknown loss 'rpo_pairs'; did you mean 'rpo_paired'?" in refuses(losses={"rpo_pairs": {}})


def test_an_unknown_hyperparameter_suggests_the_nearest(refuses):
    assert "loss 'dpo' has no hyper-parameter 'bta'; did you mean 'beta'?" in refuses(losses={"dpo": {"bta": 1.0}})


def test_a_hyperparameter_of_the_wrong_type(refuses):
    assert "loss 'dpo': beta must be a float above 0, got 'high'" in refuses(losses={"dpo": {"beta": [0.1, "high"]}})


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        ("dpo", {"beta": -1}, "loss 'dpo': beta must be a float above 0, got -1.0"),
        ("dpo", {"beta": 0}, "loss 'dpo': beta must be a float above 0, got 0.0"),
        ("ipo", {"tau": [0.1, 0]}, "loss 'ipo': tau must be a float above 0, got 0.0"),
        ("rpo_paired", {"temperature": float("inf")}, "temperature must be a float above 0, got inf"),
        ("cdpo", {"label_smoothing": 0.5}, "label_smoothing must be a float at least 0 and below 0.5, got 0.5"),
        ("dpo", {"beta": {"a": 1}}, "beta must be a float above 0, got {'a': 1}"),
        ("dpo", {"beta": [i / 1000 for i in range(1, 10_002)]}, "YAML node expansion exceeds"),
    ],
)
def test_a_hyperparameter_out_of_its_bounds(refuses, loss, settings, message):
    assert message in refuses(losses={loss: settings})


def test_settings_that_are_no_mapping(refuses):
    assert "losses.dpo: give hyper-parameters as a mapping" in refuses(losses={"dpo": 0.1})


def test_the_same_settings_twice(refuses):
    assert "losses.dpo: the grid holds the same settings twice" in refuses(losses={"dpo": {"beta": [0.1, 0.1]}})


def test_sft_is_no_loss(refuses):
    assert "'sft' needs no entry" in refuses(losses={"sft": {}, "dpo": {}})


def test_an_unknown_task_suggests_the_nearest(refuses):
    message = refuses(tasks={"tdlr": {}})
    assert "tasks.tdlr: unknown task 'tdlr'; did you mean 'tldr'?" in message


def test_a_task_that_evaluates_nothing_or_the_unknown(refuses):
    assert "tasks.alpaca_eval trains nothing: say whose" in refuses(tasks={**task(), "alpaca_eval": {}})
    assert "'tldr' is no training task of this experiment (hh)" in refuses(
        tasks={**task(), "alpaca_eval": {"evaluates": ["tldr"]}}
    )
    assert "none of them trains a policy" in refuses(tasks={"alpaca_eval": {"evaluates": ["hh"]}})


def test_an_unknown_judge_or_option(refuses):
    assert "unknown judge 'opneai'; did you mean 'openai'?" in refuses(judge={"kind": "opneai"})
    assert "judge (openai): unknown key 'modle'; did you mean 'model'?" in refuses(
        judge={"kind": "openai", "modle": "x"}
    )


def test_a_missing_key_for_a_remote_judge(refuses, monkeypatch):
    monkeypatch.delenv("A_KEY_NOBODY_HAS", raising=False)
    message = refuses(judge={"kind": "openai", "model": "gpt", "key_env": "A_KEY_NOBODY_HAS"})
    assert "A_KEY_NOBODY_HAS" in message


@pytest.mark.parametrize(("value", "number"), [(".inf", "inf"), ("-.inf", "-inf"), (".nan", "nan"), ("1e400", "inf")])
def test_a_judge_s_option_that_is_no_finite_number(refuses, value, number):
    gold = {"kind": "gold", "reward": "tests.tiny_experiment:length"}
    assert f"judge.margin must be a number, got {number}\n" in refuses(f"judge.margin={value}", judge=gold)
    message = refuses(f"judges.x.margin={value}", judges={"x": gold}, judge={})
    assert message == f"error: judges.x.margin must be a number at least 0, got {number}\n"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"base_url": "localhost"}, "judges.x.base_url 'localhost' is not of the form http://host:port/v1"),
        (
            {"budget_usd": 1, "price": {"input": 1, "output": 1}, "max_tokens": None},
            "judges.x.budget_usd: an answer without a limit can cost anything; set judges.x.max_tokens",
        ),
        ({"template": "no-such"}, "judges.x: judge template 'no-such' is neither a built-in template nor a file"),
        (
            {"key_env": "NO_SUCH_KEY"},
            "judges.x: the environment variable NO_SUCH_KEY holds no key; "
            "set it (to any word if the server at judges.x.base_url asks for none)",
        ),
    ],
)
def test_a_judge_of_a_panel_is_told_by_its_own_section(refuses, options, told):
    message = refuses(judges={"x": {"kind": "openai", "model": "m", **options}}, judge={})
    assert message.startswith(f"error: {told}")


def test_an_integer_beyond_any_float(refuses):
    number = 400 * "9"
    assert "seeds must be a number that fits a float, got 99999999999999999999...\n" in refuses(f"seeds=[{number}]")
    assert "train.epochs must be a number that fits a float" in refuses(f"train.epochs={number}")
    assert "train.lr=" in refuses(f"train.lr={number}")
    assert "beta" in refuses(f"losses.dpo.beta={number}")
    assert "judge.margin" in refuses(f"judge.margin={number}")
