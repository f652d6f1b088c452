"""The command show: one cell's settings, data, training, responses and verdicts, and its first batch."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.core.store import read_json, read_jsonl, write_json, write_jsonl
from harness.reporting.cell_facts import changed_settings, shown_steps
from tests.conftest import REPOSITORY
from tests.rehashed import rehash


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """Return a copy of the finished run's results that a test may change."""
    return Path(shutil.copytree(finished.parent / "results", tmp_path / "results"))


@pytest.fixture
def show(capsys):
    def show(results: Path, *arguments: str, status: int = 0) -> str:
        capsys.readouterr()
        assert main(["show", *arguments, "--results", str(results)]) == status
        captured = capsys.readouterr()
        return captured.err if status else captured.out

    return show


DPO = "hh/dpo/beta=0.5/0"


def test_it_shows_settings_data_training_and_responses_with_their_verdicts(finished, show):
    results = finished.parent / "results"
    out = show(results, DPO, "--samples", "2")
    key = re.search(r"hh/dpo/beta=0.5/0  \((\w+)\)", out).group(1)
    assert re.search(r"beta +0\.5", out) and re.search(r"model\.tune +last_layers", out)
    assert "losses.dpo" not in out, "what the experiment has besides this cell"
    manifest, cell = read_json(results / "tiny/manifest.json"), results / "tiny/cells" / key
    assert f"sha256 {manifest['hashes']['data']['hh']}" in out and "train: used: 24" in out
    steps = [line.split() for line in out.splitlines() if re.match(r" +\d+   (train|dev)", line)]
    assert [words[:2] for words in steps] == [
        [str(r["step"]), r["split"]] for r in read_jsonl(cell / "train/metrics.jsonl")
    ]
    for task in ("hh", "alpaca_eval"):
        samples = read_jsonl(cell / f"sample-{task}/samples.jsonl")
        assert all((row["id"] in out) == (place < 2) for place, row in enumerate(samples))
    assert "judged by  gold:tests.tiny_experiment:length" in out and out.count("verdict: ") == 4


def test_it_shows_a_training_example_with_its_mask(finished, show):
    title = "first training example (trained on: what is between ⟦ and ⟧)\n"
    out = show(finished.parent / "results", DPO).partition(title)[2]
    chosen, rejected = re.findall(r"^\d  (chosen|rejected): \d+ tokens, \d+ trained on\n<\|im_start", out, flags=re.M)
    assert (chosen, rejected) == ("chosen", "rejected") and out.count("⟦") == out.count("⟧") == 2


def test_a_beginning_of_the_key_is_enough_and_json_has_every_step(finished, show):
    results = finished.parent / "results"
    printed = json.loads(show(results, DPO, "--json"))
    assert json.loads(show(results, printed["key"][:10], "--json")) == printed
    train = results / "tiny/cells" / printed["key"] / "train"
    assert printed["trajectory"] == read_jsonl(train / "metrics.jsonl")
    assert printed["inputs"] == read_json(train / "artifact.json")["inputs"] and printed["differing"] == []
    (first, *_) = printed["evaluations"][0]["samples"]
    assert first["verdicts"][""]["status"] in ("ok", "tie")


def test_a_cell_that_failed_says_why(finished, show):
    out = show(finished.parent / "results", "hh/fails")
    assert "train: ValueError: no [bold]gradient\\x1b[31m" in out and "not yet" in out and "\x1b" not in out


def test_without_the_batch_it_needs_no_torch(finished):
    code = f"""
import sys
from harness.cli.main import main
assert main(["show", "hh/sft", "--results", {str(finished.parent / "results")!r}]) == 0
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, capture_output=True)


def test_what_a_model_wrote_moves_no_cursor_and_is_no_markup(copied, show):
    for path in copied.glob("tiny/cells/*/sample-hh/samples.jsonl"):
        rows = read_jsonl(path)
        write_jsonl(path, [{**row, "response": "a [red]b\x1b[2Jc\r\u202ed\nnext"} for row in rows])
        rehash(path.parent)
    out = show(copied, DPO)
    assert "a [red]b\\x1b[2Jc\\r\\u202ed\n" in out and "\x1b" not in out and "\r" not in out


def test_responses_that_were_edited_are_not_shown(copied, show):
    for path in copied.glob("tiny/cells/*/sample-hh/samples.jsonl"):
        path.write_text(path.read_text().replace('"response": "', '"response": "I am perfect. '))
    error = show(copied, DPO, status=2)
    assert "samples.jsonl is not what was written; run the experiment again" in error and error.count("\n") == 1


def test_the_last_run_s_other_dials_are_named(copied, show):
    manifest = read_json(copied / "tiny/manifest.json")
    manifest["config"]["train"]["lr"] = 0.5
    write_json(copied / "tiny/manifest.json", manifest)
    assert "had other values than this cell of: train.lr" in show(copied, DPO)
    error = show(copied, DPO, "--batch", status=2)
    assert "cannot be planned again" in error and "other than then: train)" in error and error.count("\n") == 1


def test_the_batch_is_what_the_first_step_was_taken_on(finished, show):
    results = finished.parent / "results"
    out = show(results, DPO, "--batch")
    key = json.loads(show(results, DPO, "--json"))["key"]
    first = next(
        row for row in read_jsonl(results / f"tiny/cells/{key}/train/metrics.jsonl") if row["split"] == "train"
    )
    assert re.search(rf"16 sequences, {first['tokens']:,} tokens; the loss is computed on [\d,]+ of them", out)
    sequences = re.findall(r"^\d+  (\w+): (\d+) tokens, (\d+) trained on\n(.*?)(?=\n\n|\Z)", out, flags=re.M | re.S)
    assert [role for role, *_ in sequences] == ["chosen", "rejected"] * 8
    for _, tokens, trained, text in sequences:
        prompt, completion = re.fullmatch(r"(.*)⟦(.*)⟧\n?", text, flags=re.S).groups()
        assert prompt.startswith("<|im_start|>") and prompt.endswith("<|im_start|>assistant\n")
        assert 0 < int(trained) < int(tokens) and completion
        assert completion.endswith("<|im_end|>") or int(trained) == 32, "the end of the turn is learnt, unless cut"


def test_the_sft_policy_s_batch_is_of_demonstrations(finished, show):
    out = show(finished.parent / "results", "hh/sft", "--batch")
    assert "8 sequences" in out and out.count("demonstration: ") == 8


def test_settings_that_are_changed_are_told_from_defaults(finished):
    config = read_json(finished.parent / "results/tiny/manifest.json")["config"]
    changed = changed_settings(config)
    assert changed["tasks.hh.train_pairs"] == 24 and changed["train.eval_every"] == 2
    assert "train.clip" not in changed and "tasks.hh.overlong" not in changed


def test_of_many_steps_the_first_and_the_last_are_shown():
    metrics = [{"split": "train", "step": step} for step in range(1, 101)] + [{"split": "dev", "step": 100}]
    shown = shown_steps(metrics, 5)
    assert [(row["split"], row["step"]) for row in shown][::4] == [("train", 1), ("train", 100)]
    assert shown[-1] == {"split": "dev", "step": 100} and len(shown) == 6


def test_a_wrong_number_of_samples(finished, show):
    assert "--samples must be at least 0" in show(finished.parent / "results", DPO, "--samples", "-1", status=2)
