"""The command plan: what an experiment will take, before anything is computed, called or paid for."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from harness.cli.main import main
from tests.changed_model import changed
from tests.evaluation.fake_openai import FakeOpenAI, Reply
from tests.run.test_sentiment import write_sentiment
from tests.tiny_experiment import FITTED, run, write_experiment


@pytest.fixture
def plan(tmp_path, tiny_model, tiny_encoder, capsys):
    def plan(**changes) -> str:
        path = write_experiment(tmp_path, tiny_model, tiny_encoder, losses={"dpo": {"beta": [0.1, 0.2]}}, **changes)
        capsys.readouterr()
        assert main(["plan", str(path)]) == 0
        return capsys.readouterr().out

    return plan


def test_it_says_cells_steps_and_that_a_local_judge_calls_nobody(plan, tmp_path):
    out = plan(judge=FITTED)
    assert "3 cells, 0 of them trained" in out and "losses: dpo (2 settings); seeds 0" in out
    assert "24 examples" in out and "3 optimiser steps" in out
    assert "6 responses from each of 3 policies, 0 of them sampled" in out
    assert "judge preference_model: runs here, no calls" in out
    assert not (tmp_path / "results").exists(), "nothing was written"


def test_it_says_where_the_data_have_less_than_is_asked_for(plan):
    sizes = {"train_pairs": 24, "dev_pairs": 8, "test_prompts": 5000, "max_prompt_tokens": 96}
    out = plan(tasks={"hh": sizes})
    assert re.search(r"hh: \d+ responses \(of the 5,000 asked for\) from each", out)
    assert "24 examples, " in out, "as many as are asked for"


def test_it_shows_a_training_example_with_its_mask(plan):
    """As in a file: what is trained on is between brackets, and it is all of the answer with its end."""
    out = plan().partition("first training example of hh (trained on: what is between ⟦ and ⟧)\n")[2]
    chosen, rejected = re.findall(r"^\d  (?:chosen|rejected): (.*?)(?=\n\n|\Z)", out, flags=re.M | re.S)
    for shown in (chosen, rejected):
        about, _, text = shown.partition("\n")
        tokens, trained = map(int, re.fullmatch(r"(\d+) tokens, (\d+) trained on", about).groups())
        prompt, answer = re.fullmatch(r"(.*)⟦(.*)⟧\n*", text, flags=re.S).groups()
        assert prompt.startswith("<|im_start|>") and prompt.endswith("<|im_start|>assistant\n")
        assert 0 < trained < tokens and (answer.endswith("<|im_end|>") or trained == 32)


@pytest.mark.slow
def test_what_is_changed_in_the_data_and_by_the_template_is_told(plan, tmp_path, tiny_model, capsys):
    """In the plan and in the announcement of a run, and not in the manifest alone."""
    rows = [{"prompt": f"Question {i}?", "chosen": f"Yes {i}.<|im_end|>", "rejected": f"No {i}."} for i in range(60)]
    rows += [{"prompt": f"Esc \x1b[2J {i}", "chosen": f"<|im_start|> {i}", "rejected": "b"} for i in range(60)]
    rows.append({"prompt": "empty", "chosen": "", "rejected": "b"})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    template = (folder / "chat_template.jinja").read_text().partition("{% if add_generation_prompt")[0]
    (folder / "chat_template.jinja").write_text(template)
    sizes = {"train_pairs": 40, "dev_pairs": 8, "test_prompts": 6}
    task = {"mine": {"kind": "preferences", "data": str(tmp_path / "pairs.jsonl"), **sizes}}
    out = plan(tasks=task, model={"name": str(folder)})
    notes = ("rows dropped, empty completion: 1", "train: completion with an end of turn of its own, left out: ")
    assert all(note in out for note in notes)
    (template,) = (line for line in out.splitlines() if line.startswith("  chat    template: prompts end with"))
    assert r"<|im_start|>assistant\n" in template and "\x1b" not in out
    assert run(tmp_path / "tiny.yaml") == 0
    announced = capsys.readouterr().out.partition("  judge ")[0]
    assert all(note in announced for note in (*notes, template.strip()))


def test_it_needs_no_key_and_prices_the_calls(plan, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    judge = {"kind": "openai", "model": "judge-1", "key_env": "JUDGE_KEY", "max_tokens": 100}
    out = plan(judge=judge)
    hh = next(
        line for line in out.splitlines() if "judge openai: 36 calls" in line
    )  # 3 policies x 6 prompts x 2 orders
    assert "0 of them answered before" in hh and "at most 3,600 of answers" in hh and "no known price" in hh
    out = plan(judge={**judge, "price": {"input": 0.0, "output": 1000.0}, "budget_usd": 5.0})
    assert "at most about 3.60 USD, budget 5 USD" in out
    out = plan(judge={**judge, "model": "gpt-4o"})
    assert re.search(r"judge openai: 36 calls.*at most about 0\.\d\d USD", out)


@pytest.fixture
def broken_judge(tmp_path, tiny_model) -> Path:
    """A reward model with a weight that is not a number, which shows when it is first asked."""

    def with_a_score(tensors: dict) -> dict:
        width = tensors["model.embed_tokens.weight"].shape[1]
        return {**tensors, "score.weight": torch.full((1, width), torch.nan)}

    labels = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    return changed(tiny_model, tmp_path / "broken_judge", with_a_score, **labels)


@pytest.mark.slow
def test_after_a_run_of_a_panel_all_is_answered_and_a_judge_that_fails_fails_alone(
    plan, tmp_path, broken_judge, monkeypatch
):
    monkeypatch.setenv("JUDGE_KEY", "any-word")
    with FakeOpenAI(lambda request: Reply("Preferred: 1")) as server:
        panel = {
            "broken": {"kind": "reward_model", "model": str(broken_judge), "tasks": ["hh"]},
            "remote": {"kind": "openai", "model": "judge-1", "base_url": server.url, "key_env": "JUDGE_KEY"},
            "local": {"kind": "gold", "reward": "tests.tiny_experiment:length", "tasks": ["hh"]},
        }
        assert "judge remote openai: 24 calls, 0 of them" in plan(judges=panel)
        assert run(tmp_path / "tiny.yaml") == 1
        asked = len(server.requests)
        out = plan(judges=panel)
        calls, kept = map(int, re.search(r"judge remote openai: (\d+) calls, (\d+) of them", out).groups())
        assert "3 cells, 3 of them trained" in out and "6 responses from each of 3 policies, 3 of them" in out
        assert calls == kept and len(server.requests) == asked
    page = (tmp_path / "results" / "tiny" / "leaderboard.md").read_text()
    assert "## hh, judged by remote" in page and "## hh, judged by local" in page and "Do the judges agree?" in page
    assert "judged by local" not in page.split("## alpaca")[1].split("## Do")[0]
    broken, *others = (page.split(f"## hh, judged by {name}\n")[1].split("\n## ")[0] for name in panel)
    assert broken.count("| failed") == 3 and "has NaN or infinite values" in broken
    assert all("failed" not in table for table in others)
    cells = list((tmp_path / "results" / "tiny" / "cells").iterdir())
    assert all((cell / "judge-hh@local" / "judgements.jsonl").is_file() for cell in cells)


def test_before_a_model_from_scratch_is_there_it_says_what_it_cannot_know_and_trains_nothing(
    tmp_path, tiny_encoder, capsys, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    path = write_sentiment(tmp_path, tiny_encoder)
    assert main(["plan", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "experiment controlled: 2 cells"
    assert "not trained yet" in lines[1] and lines[-1].startswith("  known only once the model is there")
    assert not (tmp_path / "results").exists(), "nothing was trained, and nothing written"


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("nca+label_smoothing", "label_smoothing reverses a logit for a flipped label, and nca marks none"),
        ("aot+wpo", "wpo is for pairs one by one, and the rows of aot belong to several"),
        ("kto+js", "js knows log-ratios up to a constant, and kto reads them one by one"),
    ],
)
def test_a_modifier_that_does_not_fit_its_loss_is_refused_in_one_line(
    tmp_path, tiny_model, tiny_encoder, capsys, loss, message
):
    path = write_experiment(tmp_path, tiny_model, tiny_encoder, losses={"dpo": {}, loss: {}})
    capsys.readouterr()
    for command in ("plan", "run"):
        assert main([command, str(path)]) == 2
        told = capsys.readouterr()
        assert f"loss '{loss}': {message}" in told.err and told.err.count("\n") == 1 and told.out == ""
    assert not (tmp_path / "results").exists()
