"""The commands judge and judge-check: the judges of experiments on a user's own outputs and labelled data."""

import csv
import gzip
import json
import re
from pathlib import Path

import pytest

import harness
from harness.cli.main import main
from harness.core.bounded import LONGEST_ROW
from harness.reporting.judge_checks import checks_of
from tests.evaluation.fake_openai import FakeOpenAI, Reply, prefers

DATA = Path(harness.__file__).parent / "tasks" / "data"
LENGTH = "gold:reward=tests.tiny_experiment:length"


def packaged(name: str) -> list[dict]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture
def command(tmp_path, capsys):
    """Return a function that runs a command with results in the test's folder and returns status, stdout, stderr."""

    def command(*arguments) -> tuple[int, str, str]:
        status = main([*map(str, arguments), "--results", str(tmp_path / "results")])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


def test_a_judge_of_length_on_llmbar_is_as_right_as_length_is(command, tmp_path):
    status, out, _ = command("judge-check", "--judge", LENGTH, "--data", "llmbar", "--json")
    printed = json.loads(out)
    rows = packaged("llmbar")
    lengths = [len(row["output_1"]) - len(row["output_2"]) for row in rows]
    right = [0.5 if d == 0 else float((d > 0) == (row["label"] == 1)) for d, row in zip(lengths, rows, strict=True)]
    assert status == 0
    assert (printed["n"], printed["accuracy"]) == (419, pytest.approx(sum(right) / 419))
    assert printed["low"] < printed["accuracy"] < printed["high"]
    assert printed["longer"] == 1.0
    natural = [r for r, row in zip(right, rows, strict=True) if row["subset"] == "Natural"]
    assert (printed["subsets"]["Natural"]["n"], printed["subsets"]["Natural"]["accuracy"]) == (
        100,
        pytest.approx(sum(natural) / 100),
    )
    assert (printed["flip_rate"], printed["usd_per_1000"], printed["coverage"]) == (None, 0.0, 1.0)
    told = checks_of(tmp_path / "results", printed["judge"])
    assert told.startswith(f"llmbar: {100 * printed['accuracy']:.1f} %")


def test_a_trial_on_the_first_comparisons_never_replaces_the_check_of_all(command, tmp_path):
    arguments = ("judge-check", "--judge", LENGTH, "--data", "llmbar")
    judge = json.loads(command(*arguments, "--limit", "9", "--json")[1])["judge"]
    told = command(*arguments, "--limit", "30")[1]
    assert "llmbar, the first 30, objective labels" in told and "llmbar-first-30.json" in told
    assert checks_of(tmp_path / "results", judge).startswith("llmbar, the first 30: ")
    assert "llmbar.json" in command(*arguments)[1]
    whole = checks_of(tmp_path / "results", judge)
    assert whole.startswith("llmbar: ") and " of 419 (" in whole and ";" not in whole
    command(*arguments, "--limit", "50")
    assert checks_of(tmp_path / "results", judge) == whole


def test_a_file_of_labels_may_have_either_form(command, tmp_path):
    texts = [("a long answer", "short"), ("brief", "a longer answer"), ("same", "same")]
    plain = tmp_path / "labelled.jsonl"
    with plain.open("w") as file:
        for (first, second), label in zip(texts, (1, 1, 0), strict=True):
            file.write(json.dumps({"prompt": "Why?", "response_1": first, "response_2": second, "label": label}) + "\n")
    printed = json.loads(command("judge-check", "--judge", LENGTH, "--data", plain, "--json")[1])
    assert (printed["accuracy"], printed["n"], printed["coverage"]) == (0.5, 2, 1.0)
    pairs = tmp_path / "pairs.json"
    pairs.write_text(json.dumps([{"prompt": "Why?", "chosen": a, "rejected": b} for a, b in texts[:2]]))
    printed = json.loads(command("judge-check", "--judge", LENGTH, "--data", pairs, "--json")[1])
    assert (printed["accuracy"], printed["n"]) == (0.5, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "x", "response_1": "a", "response_2": "b", "label": 3}', "label' must be 1, 2"),
        ('{"prompt": "x", "response": "a"}', "no labelled comparison; accepted: prompt/response_1"),
    ],
)
def test_a_file_that_holds_no_labels_is_refused(command, tmp_path, text, message):
    file = tmp_path / "x.jsonl"
    file.write_text(text)
    status, _, error = command("judge-check", "--judge", LENGTH, "--data", file)
    assert status == 2 and message in error


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ("opneai:model=x", "did you mean 'openai'"),
        ("openai:gpt-4o", "KIND:option=value"),
        ("openai:modle=x", "did you mean 'model'"),
        ("openai:model=x,key_env=NO_SUCH_KEY", "NO_SUCH_KEY holds no key"),
        ("no-such.yaml", "cannot be read"),
        ("gold:reward=no_such_module:f", "cannot be imported"),
    ],
)
def test_a_judge_that_cannot_work_is_said_in_one_line(command, judge, message):
    status, _, error = command("judge-check", "--judge", judge, "--data", "llmbar")
    assert status == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    ["key_env={}", "key_env={},modle=x", "{}", "key_env={},timeout=soon", "base_url=http://{}@host", "extra={}"],
)
def test_a_key_among_a_judge_s_options_is_never_shown(command, options):
    key = "gsk_AbCdEf0123456789"
    status, out, error = command("judge-check", "--judge", f"openai:model=x,{options.format(key)}", "--data", "llmbar")
    assert status == 2 and key not in out + error and error.count("\n") == 1


def test_an_experiment_s_own_judge_is_checked_with_its_results(tmp_path, capsys):
    """The result is written where the experiment's leaderboard reads it."""
    experiment = tmp_path / "own.yaml"
    sections = {"results": str(tmp_path / "runs"), "tasks": {"hh": {}}, "losses": {"dpo": {}}}
    judge = {"kind": "gold", "reward": "tests.tiny_experiment:length", "margin": 1.0}
    experiment.write_text(json.dumps({**sections, "judge": judge}))  # JSON is valid YAML
    assert main(["judge-check", "--judge", str(experiment), "--data", "llmbar", "--limit", "20", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["options"] == {"reward": "tests.tiny_experiment:length", "margin": 1.0} and printed["n"] == 20
    assert checks_of(tmp_path / "runs", printed["judge"]).startswith("llmbar, the first 20: ")
    section = tmp_path / "judge.yaml"
    section.write_text(json.dumps(judge))
    arguments = ["--data", "llmbar", "--limit", "20", "--json", "--results", str(tmp_path / "other")]
    assert main(["judge-check", "--judge", str(section), *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == printed["accuracy"]
    experiment.write_text(json.dumps({**sections, "judges": {"a": judge}}))
    assert main(["judge-check", "--judge", str(experiment), "--data", "llmbar"]) == 2
    assert "has a panel" in capsys.readouterr().err


OUTPUTS = [
    {"instruction": "Why is the sky blue?", "output": "good: scattering", "generator": "mine"},
    {"instruction": "Name a bird.", "output": "poor", "generator": "mine"},
]
BASELINE = [
    {"instruction": r["instruction"], "output": o} for r, o in zip(OUTPUTS, ("poor", "good: a robin"), strict=True)
]


@pytest.fixture
def outputs(tmp_path):
    path = tmp_path / "outputs.json"
    path.write_text(json.dumps(OUTPUTS))
    (tmp_path / "baseline.json").write_text(json.dumps(BASELINE[::-1]))
    return path


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "any-word")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FakeOpenAI(prefers("good")) as running:
        yield running


def remote(server) -> str:
    return f"openai:model=judge,key_env=JUDGE_KEY,max_retries=0,base_url={server.url},price.input=1,price.output=10"


def test_outputs_in_alpaca_eval_s_format_are_judged_against_another_file(command, outputs, server, tmp_path):
    arguments = ("judge", outputs, "--baseline", tmp_path / "baseline.json", "--judge", remote(server))
    status, out, _ = command(*arguments, "--json")
    printed = json.loads(out)
    assert status == 0
    assert (printed["win_rate"], printed["n"], printed["coverage"], printed["flip_rate"]) == (50.0, 2, 1.0, 0.0)
    assert printed["usage"] == {"prompt_tokens": 400, "completion_tokens": 40, "usd": pytest.approx(800 / 1e6)}
    rows = [json.loads(line) for line in (tmp_path / "outputs.judged.jsonl").read_text().splitlines()]
    assert [(r["output"], r["baseline"], r["preference"]) for r in rows] == [
        ("good: scattering", "poor", 1.0),
        ("poor", "good: a robin", 0.0),
    ]
    asked = len(server.requests)
    _, out, _ = command(*arguments)
    assert len(server.requests) == asked, "what is judged is not asked again"
    assert "50.0 % [" in out and "2 ok" in out and "0.00 USD" in out


def test_a_missing_judgement_shows_and_is_asked_again(command, outputs, server, tmp_path):
    honest = server.respond
    server.respond = lambda request: Reply(status=500) if "robin" in request.content else honest(request)
    arguments = ("judge", outputs, "--baseline", tmp_path / "baseline.json", "--judge", remote(server), "--json")
    status, out, _ = command(*arguments)
    printed = json.loads(out)
    assert (status, printed["coverage"], printed["win_rate"]) == (1, 0.5, 100.0)
    assert printed["statuses"] == {"ok": 1, "failed": 1}
    server.respond, before = honest, len(server.requests)
    status, out, _ = command(*arguments)
    assert (status, json.loads(out)["win_rate"]) == (0, 50.0)
    assert len(server.requests) - before == 2


def test_a_csv_file_may_hold_both_sides(command, tmp_path):
    path = tmp_path / "both.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(
            [["prompt", "response", "baseline"], ["Why,\nnow?", "a long answer", "no"], ["Who?", "I", "you"]]
        )
    status, out, _ = command("judge", path, "--judge", LENGTH, "--json", "--out", tmp_path / "out.jsonl")
    assert (status, json.loads(out)["win_rate"]) == (0, 50.0)
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["prompt"][0]["content"] == "Why,\nnow?"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("Who?,I, for one,you", "row 2 has more cells than there are columns; put texts with commas into quotes"),
        ("Who?,I", "row 2: no column 'baseline'"),
        (f'Who?,"{"x" * (LONGEST_ROW + 1)}",you', "field larger than field limit"),
    ],
    ids=["commas", "short", "long"],
)
def test_a_row_of_a_csv_file_that_does_not_fit_is_refused_with_its_place(command, tmp_path, row, said):
    """A comma without quotes would cut a response short; a long one is read up to the limit of all rows."""
    (tmp_path / "both.csv").write_text(f'prompt,response,baseline\nWhy?,"{"x" * 200_000}",no\n{row}\n')
    status, out, error = command("judge", tmp_path / "both.csv", "--judge", LENGTH)
    assert (status, out) == (2, "") and said in error and error.count("\n") == 1


def test_a_csv_file_that_is_a_truncated_gzip_is_refused(command, tmp_path):
    path = tmp_path / "both.csv"
    path.write_bytes(gzip.compress(b"prompt,response,baseline\nWhy?,so,no\n" * 1000, mtime=0)[:-20])
    status, out, error = command("judge", path, "--judge", LENGTH)
    assert (status, out) == (2, "") and f"{path} cannot be read: Compressed file ended before" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": [{"instruction": "x"}]}, "a row needs prompt or instruction, and output"),
        ({"baseline": BASELINE[:1]}, "has no output for 1 of 2 prompts"),
        (
            {"baseline": [*BASELINE, {**BASELINE[0], "output": "other"}]},
            "b.json:1: the prompt of .*b.json:1 has two",
        ),
        (
            {"outputs": [*OUTPUTS, {**OUTPUTS[0], "output": "another"}]},
            "o.json:1: the prompt of .*o.json:1 has two",
        ),
        ({"outputs": [*OUTPUTS, {**OUTPUTS[0], "instruction": " Why is the  sky blue?\n"}]}, "has two outputs here"),
        (
            {"outputs": [{**o, "baseline": "b", "prompt": "same"} for o in OUTPUTS], "baseline": None},
            "has two outputs here; give each policy a file of its own",
        ),
        (
            {"outputs": [OUTPUTS[0], {**OUTPUTS[1], "generator": "other"}]},
            "o.json:1: outputs of 'other', after those of 'mine'",
        ),
        ({"baseline": [{**b, "generator": i} for i, b in enumerate(BASELINE)]}, "outputs of '1', after those of '0'"),
        ({"baseline": None}, "no column 'baseline'"),
    ],
)
def test_files_that_do_not_fit_are_refused(command, tmp_path, change, message):
    files = {"outputs": OUTPUTS, "baseline": BASELINE, **change}
    (tmp_path / "o.json").write_text(json.dumps(files["outputs"]))
    arguments = ["judge", tmp_path / "o.json", "--judge", LENGTH]
    if files["baseline"] is not None:
        (tmp_path / "b.json").write_text(json.dumps(files["baseline"]))
        arguments += ["--baseline", tmp_path / "b.json"]
    status, _, error = command(*arguments)
    assert status == 2 and re.search(message, error) and error.count("\n") == 1


def outputs_file(path: Path) -> Path:
    path.write_text('{"prompt": "a", "output": "b", "baseline": "c"}\n')
    return path


def test_a_results_folder_that_cannot_be_written_is_said_before_anything_is_judged(command, tmp_path):
    judge = ("judge", outputs_file(tmp_path / "outputs.jsonl"), "--judge", LENGTH)
    (tmp_path / "results").write_text("a file")
    for arguments in (judge, ("judge-check", *judge[2:], "--data", "llmbar")):
        status, printed, error = command(*arguments)
        assert (status, printed) == (2, "") and "results folder" in error


def test_files_of_outputs_that_differ_after_a_dot_have_judgements_of_their_own(command, tmp_path):
    for name in ("gpt-4.0.jsonl", "gpt-4.1.jsonl"):
        assert command("judge", outputs_file(tmp_path / name), "--judge", LENGTH)[0] == 0
    assert {path.name for path in tmp_path.glob("*.judged.jsonl")} == {"gpt-4.0.judged.jsonl", "gpt-4.1.judged.jsonl"}


def test_a_home_folder_is_meant_in_every_argument(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    outputs_file(tmp_path / "outputs.jsonl")
    status, _, error = command("judge", "~/outputs.jsonl", "--judge", LENGTH, "--out", "~/judged.jsonl")
    assert (status, error) == (0, "") and (tmp_path / "judged.jsonl").is_file()


@pytest.mark.parametrize("out", ["outputs.json", "baseline.json", "./outputs.json", "no-such-folder/x.jsonl", "folder"])
def test_a_place_for_the_judgements_that_will_not_do_is_said_before_anything_is_paid(
    command, outputs, server, tmp_path, monkeypatch, out
):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    arguments = ("judge", "outputs.json", "--baseline", "baseline.json", "--judge", remote(server))
    status, _, error = command(*arguments, "--out", out)
    assert status == 2 and "--out" in error and error.count("\n") == 1
    assert server.requests == [] and {path: path.read_bytes() for path in before} == before


def test_graded_and_hard_verdicts_are_counted_apart(command, outputs, server, tmp_path):
    """The endpoint gives log-probs for the question about the sky alone, and for one of its two orders."""

    def respond(request):
        reply = prefers("good")(request)
        if "sky" in request.prompt and "good" in request.responses[0]:
            head, label = reply.text[:-1], reply.text[-1]
            reply.tokens = [(head, {}), (label, {label: -0.1, "2": -3.0})]
        return reply

    server.respond = respond
    arguments = ("judge", outputs, "--baseline", tmp_path / "baseline.json", "--judge", remote(server))
    assert json.loads(command(*arguments, "--json")[1])["graded_rate"] == 0.25
    assert "graded       25.0 % of the verdicts, by log-probs; the others are 0 or 1\n" in command(*arguments)[1]
    rows = [json.loads(line) for line in (tmp_path / "outputs.judged.jsonl").read_text().splitlines()]
    assert [row["graded"] for row in rows] == [0.5, 0.0]


def test_a_check_in_which_nothing_was_judged_is_not_kept(command, server, tmp_path):
    """So that it is in no report, and replaces no check that measured something."""
    arguments = ("judge-check", "--judge", remote(server), "--data", "llmbar", "--limit", "3")
    server.respond = lambda request: Reply("I like both.")
    status, out, _ = command(*arguments)
    assert status == 1
    assert "accuracy       not measured (0 of 3)\n" in out and "nothing was measured" in out
    assert "0.0 %; 3 unparsable: policy first: no verdict in the last line: 'I like both.' (kept answers" in out
    printed = json.loads(command(*arguments, "--json")[1])
    assert (printed["accuracy"], printed["n"], printed["coverage"]) == (None, 0, 0.0)
    assert not list((tmp_path / "results").rglob("judge-checks"))
    assert checks_of(tmp_path / "results", printed["judge"]) == "none was run"
