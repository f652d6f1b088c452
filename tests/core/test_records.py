"""Records: reading returns what was written, and errors name the file and the field."""

from dataclasses import asdict, replace

import pytest

from harness.core.errors import UserError
from harness.core.prompt import Message
from harness.core.record_files import (
    read_failures,
    read_metrics,
    read_record,
    read_records,
    readable,
    write_record,
    write_records,
)
from harness.core.records import (
    Agreement,
    CellRecord,
    DevMetrics,
    Failure,
    Judgement,
    JudgeRecord,
    Measure,
    PlanRecord,
    Sample,
    TrainMetrics,
    TrainSummary,
    Usage,
    cell_folder,
    stage_folder,
)
from harness.core.store import read_json, write_json, write_jsonl

CELL = CellRecord("k", "hh", "dpo", {"beta": 0.1}, 0, "sum", "2305.18290", "paired", ("hh", "alpaca_eval"))
DEV = DevMetrics("dev", 4, 0.6, -0.5, -1.5, 1.0, 0.75, kl=1.0)
TRAIN = TrainMetrics("train", 1, 0.7, 0.0, None, None, None, learning_rate=1e-5, grad_norm=2, seconds=0.1, tokens=100)
SAMPLE = Sample("hh-0", (Message("user", "Why?"),), "Because.", (3, 4), "No.", 2, True, -1.5, -2.0)
ONE_IN_A_FILE = [
    CELL,
    PlanRecord(
        experiment="e", baselines={"hh": "chosen"}, decoding={"top_p": 0.9}, judges={"hh": ["a"]}, cells=(CELL,)
    ),
    TrainSummary(),
    TrainSummary(4, 8, 100, 16, 1.5, DEV),
    JudgeRecord("gpt-1", "a", Agreement(0.64, 0.6, 0.68, 500, "human choices")),
    Failure("judge", "no key", "hh", "a", "Traceback"),
]
ROWS = [
    SAMPLE,
    Measure(1.0, "hh-0", "Because.", 2, True, -2.0, 0.5, 0.5, 0.25, 3.0),
    Judgement("hh-0", "ok", 1.0, False, "", 0.5, usage=Usage(10, 2, None)),
    Judgement("hh-1", "failed", None, detail="no answer"),
]


@pytest.mark.parametrize("record", ONE_IN_A_FILE, ids=lambda record: type(record).__name__)
def test_a_record_is_read_as_it_was_written(tmp_path, record):
    write_record(tmp_path, record)
    assert read_record(type(record), tmp_path) == record


@pytest.mark.parametrize("record", ROWS, ids=lambda record: type(record).__name__)
def test_rows_are_read_as_they_were_written(tmp_path, record):
    write_records(tmp_path, type(record), [record, replace(record, id="other")])
    assert read_records(type(record), tmp_path) == [record, replace(record, id="other")]


def test_the_metrics_of_both_splits_lie_in_one_file(tmp_path):
    write_jsonl(tmp_path / "metrics.jsonl", map(asdict, [TRAIN, DEV]))
    assert read_metrics(tmp_path) == [TRAIN, DEV]
    assert read_metrics(tmp_path / "nothing was trained") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None}, "field 'tokens': expected int, got None"),
        ({"tokens": 2.0}, "field 'tokens': expected int, got 2.0"),
        ({"finished": 1}, "field 'finished': expected bool, got 1"),
        ({"logp": "-1"}, "field 'logp': expected float, got '-1'"),
        ({"logp": -(10**309)}, f"field 'logp': expected float, got -1{58 * '0'}"),
        ({"prompt": "Why?"}, "field 'prompt': expected list, got 'Why?'"),
        ({"prompt": [{"role": "user"}]}, "field 'prompt': no field 'content'"),
        ({"ids": {}}, "field 'ids': expected list, got {}"),
        ({"ids": [3, "4"]}, "field 'ids': expected int, got '4'"),
        ({"ids": [3, None]}, "field 'ids': expected int, got None"),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path, change, message):
    write_jsonl(tmp_path / "samples.jsonl", [asdict(SAMPLE), asdict(SAMPLE) | change])
    with pytest.raises(UserError) as raised:
        read_records(Sample, tmp_path)
    assert str(raised.value) == (
        f"{tmp_path / 'samples.jsonl'}: row 2: {message}; another version wrote it, run it again"
    )


@pytest.mark.parametrize("name", asdict(SAMPLE))
def test_a_field_that_is_missing_is_named(tmp_path, name):
    row = {key: value for key, value in asdict(SAMPLE).items() if key != name}
    write_jsonl(tmp_path / "samples.jsonl", [row])
    with pytest.raises(UserError, match=rf"samples\.jsonl: row 1: no field '{name}'; another version wrote it"):
        read_records(Sample, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baselines": {"hh": 1}}, "field 'baselines': expected str, got 1"),
        ({"judges": {"hh": "gpt"}}, "field 'judges': expected list, got 'gpt'"),
        ({"judges": {"hh": [None]}}, "field 'judges': expected str, got None"),
        ({"starts": {"hh": []}}, "field 'starts': expected str, got []"),
        ({"cells": [asdict(CELL) | {"evaluated_on": [1]}]}, "field 'cells': field 'evaluated_on': expected str, got 1"),
        ({"cells": [None]}, "field 'cells': expected the fields of a CellRecord, got None"),
    ],
)
def test_what_lists_and_mappings_hold_is_checked_too(tmp_path, change, message):
    write_json(tmp_path / "plan.json", asdict(ONE_IN_A_FILE[1]) | change)
    with pytest.raises(UserError) as raised:
        read_record(PlanRecord, tmp_path)
    assert str(raised.value) == f"{tmp_path / 'plan.json'}: {message}; another version wrote it, run it again"


def test_a_row_that_stands_twice_is_named(tmp_path):
    write_records(tmp_path, Sample, [SAMPLE, replace(SAMPLE, id="other"), SAMPLE])
    with pytest.raises(UserError, match=r"samples\.jsonl: row 3: it stands there twice; run the experiment again"):
        read_records(Sample, tmp_path)
    measured = [ROWS[1], replace(ROWS[1], at=0.5)]
    write_records(tmp_path, Measure, measured)
    assert read_records(Measure, tmp_path) == measured, "of two policies"


def test_what_is_no_object_is_named(tmp_path):
    write_json(tmp_path / "plan.json", [1])
    with pytest.raises(UserError, match=r"plan\.json: expected the fields of a PlanRecord, got \[1\]"):
        read_record(PlanRecord, tmp_path)
    write_jsonl(tmp_path / "metrics.jsonl", [3])
    with pytest.raises(UserError, match=r"metrics\.jsonl: row 1: expected the fields of a TrainMetrics, got 3"):
        read_metrics(tmp_path)


def test_a_damaged_file_is_named_with_what_to_do(tmp_path):
    (tmp_path / "judge.json").write_text('{"id": ')
    with pytest.raises(UserError, match=r"judge\.json: cannot be read .*; run the experiment again"):
        read_record(JudgeRecord, tmp_path)


def test_nested_lists_of_any_depth_are_refused_in_one_line(tmp_path):
    """Near Python's limit, a list is read but cannot be shown in a message."""
    for depth in (1, *range(900, 1000), 100_000):
        for kind, read in ((JudgeRecord, read_record), (Sample, read_records)):
            (tmp_path / kind.FILE).write_text(depth * "[" + depth * "]")
            with pytest.raises(UserError, match=rf"{kind.FILE}:.* run") as raised:
                read(kind, tmp_path)
            assert "\n" not in str(raised.value)


def test_a_number_that_is_too_large_for_what_reads_it_is_a_damaged_file(tmp_path):
    write_json(tmp_path / "seconds.json", 10**400)
    with pytest.raises(UserError, match=r"seconds\.json: cannot be read \(int too large to convert to float\); run"):
        readable(tmp_path / "seconds.json", lambda path: float(read_json(path)))


def test_a_plan_from_before_panels_has_one_judge(tmp_path):
    plan = {"experiment": "e", "baselines": {}, "decoding": {}, "cells": [asdict(CELL)], "of a later version": 1}
    write_json(tmp_path / "plan.json", plan)
    assert read_record(PlanRecord, tmp_path) == PlanRecord(experiment="e", baselines={}, decoding={}, cells=(CELL,))


def test_a_cell_that_did_not_fail_has_no_failure(tmp_path):
    assert read_failures(tmp_path) == []


def test_a_failure_names_stage_split_task_and_judge():
    assert Failure("judge", "no", "a-task", "gpt-4", split="dev").where == "judge-dev-a-task@gpt-4"
    assert Failure("train", "no").where == "train"


def test_where_things_lie(tmp_path):
    assert cell_folder(tmp_path, "k") == tmp_path / "cells" / "k"
    assert stage_folder("train") == "train"
    assert stage_folder("sample", "hh") == "sample-hh"
    assert stage_folder("judge", "hh", "gpt") == "judge-hh@gpt"
