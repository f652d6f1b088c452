"""The full data sets, read by hub id through `datasets` from a local hub server."""

import json
import subprocess
import sys

import pytest

from tests.hub import served

# Loads each [kind, data, subset] in its input and prints the result.
LOAD = """
import json, sys
from harness.core.config import TaskConfig
from harness.core.errors import UserError
from harness.tasks import TASKS
for kind, data, subset in json.load(sys.stdin):
    try:
        loaded = TASKS.get(kind).load(TaskConfig(kind=kind, data=data, subset=subset))
        first = loaded.test[0]
        print(json.dumps([loaded.labels, loaded.counts, first.prompt[0].content, first.baseline]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture
def load_from_hub(tmp_path):
    """Serve tmp_path/hub as a hub and load data sets in a new process, because the hub's address is read only once."""
    (tmp_path / "hub").mkdir()
    with served(tmp_path) as environment:

        def load(*configs):
            result = subprocess.run(
                [sys.executable, "-c", LOAD], input=json.dumps(configs), env=environment, capture_output=True, text=True
            )
            assert result.returncode == 0, result.stderr
            assert result.stderr == ""
            return [json.loads(line) for line in result.stdout.splitlines()]

        yield load


def dialogue(number, answer):
    return f"\n\nHuman: q {number}\n\nAssistant: {answer}"


def comparison(number, split):
    summaries = [{"text": f" {policy} {number}", "policy": policy, "note": None} for policy in ("ref", "sup2")]
    info = {"id": "t3", "post": f"post {number}", "title": "A title", "subreddit": "tifu", "site": None}
    return {"info": info, "summaries": summaries, "choice": 1, "split": split, "extra": {"confidence": None}}


@pytest.mark.slow
def test_the_three_data_sets_are_read_by_their_hub_ids(write, load_from_hub):
    for subset, start in (("harmless-base", 0), ("helpful-base", 100)):
        for split, numbers in (("train", range(start, start + 80)), ("test", range(start + 75, start + 90))):
            rows = [{"chosen": dialogue(i, "good"), "rejected": dialogue(i, "bad")} for i in numbers]
            write(f"hub/Anthropic/hh-rlhf/{subset}/{split}.jsonl.gz", rows)
    write("hub/Anthropic/hh-rlhf/red-team-attempts/red_team_attempts.jsonl.gz", [{"transcript": "another kind"}])

    summaries = "hub/openai/summarize_from_feedback"  # as in the revision refs/convert/parquet
    write(f"{summaries}/comparisons/train/0000.parquet", [comparison(i, "train") for i in range(80)])
    write(f"{summaries}/comparisons/validation/0000.parquet", [comparison(i, "valid1") for i in range(75, 95)])
    write(f"{summaries}/axis/test/0000.parquet", [{"rating": 3}])

    outputs = [{"instruction": f"do {i}", "output": "done", "generator": "g", "dataset": "d"} for i in range(9)]
    script = write("hub/tatsu-lab/alpaca_eval/alpaca_eval_gpt4_baseline.json", outputs).with_name("alpaca_eval.py")
    script.write_text("raise RuntimeError('a data set must not run code')")

    hh, hh_all, tldr, alpaca, *errors = load_from_hub(
        ("hh", "Anthropic/hh-rlhf", "harmless-base"),
        ("hh", "Anthropic/hh-rlhf", None),
        ("tldr", "openai/summarize_from_feedback", None),
        ("alpaca_eval", "tatsu-lab/alpaca_eval", None),
        ("hh", "Anthropic/no-such-thing", None),
        ("alpaca_eval", "tatsu-lab/no-such-thing", None),
    )
    for (labels, counts, prompt, baseline), read, test in ((hh, 95, 15), (hh_all, 190, 30)):
        assert (labels, counts["rows read"], counts["test: questions"]) == ("human", read, test)
        assert counts["rows dropped, prompt also in test"] == test / 3
        assert prompt.startswith("q ") and baseline == "good"
    labels, counts, prompt, baseline = tldr
    assert (labels, counts["rows read"], counts["test: questions"]) == ("human", 100, 20)
    assert prompt.startswith("SUBREDDIT: r/tifu\n\nTITLE: A title\n\nPOST: post ") and baseline.startswith("ref ")
    assert alpaca[1]["test: questions"] == 9 and alpaca[3] == "done"
    for error in errors:
        assert "no local data at" in error and "none to be had from the hub (" in error and "\n" not in error


def test_other_data_sets_are_read_by_configuration_or_family_of_splits(write, load_from_hub):
    def rows(name):
        return [{"prompt": f"{name} {i}", "chosen": name, "rejected": "bad"} for i in range(60)]

    for split in ("train_prefs", "test_prefs", "train_sft"):
        write(f"hub/some/families/data/{split}-00000-of-00001.parquet", rows(split))
    files = "".join(f"  - {{split: {s}, path: data/{s}-*}}\n" for s in ("train_prefs", "test_prefs", "train_sft"))
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n"
    (write("hub/some/families/README.md", []).write_text(card))
    for name in ("one", "two"):
        write(f"hub/some/configured/{name}/train.jsonl", rows(name))
    card = "".join(f"- {{config_name: {name}, data_files: {name}/train.jsonl}}\n" for name in ("one", "two"))
    (write("hub/some/configured/README.md", []).write_text(f"---\nconfigs:\n{card}---\n"))

    several, prefs, configured, unnamed = load_from_hub(
        ("preferences", "some/families", None),
        ("preferences", "some/families", "prefs"),
        ("preferences", "some/configured", "two"),
        ("preferences", "some/configured", None),
    )
    assert several == (
        "hub data set 'some/families' has the splits train_prefs, test_prefs, train_sft; "
        "name in 'subset' which family is meant: prefs, sft"
    )
    assert prefs[1]["rows read"] == 120 and prefs[1]["test: questions"] == 60 and prefs[3] == "test_prefs"
    assert configured[1]["rows read"] == 60 and configured[3] == "two"
    assert "Config name is missing" in unnamed
