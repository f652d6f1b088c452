"""What a results folder is read as."""

import json
import math
import shutil

import pytest

from harness.core.errors import UserError
from harness.core.records import Failure
from harness.core.store import key_of
from harness.reporting.results import load_results
from tests.reporting.results_folder import (
    DECODING,
    plan_cell,
    write_cell,
    write_example,
    write_failures,
    write_json,
    write_plan,
    write_samples,
)


@pytest.fixture(scope="module")
def results(example):
    return load_results(example)


def test_every_response_is_a_row_with_its_lengths_and_kl(results):
    row = results.prompts.query("cell == 'hh-dpo-0.1-1' and id == 'hh-2'").iloc[0].to_dict()
    assert math.isnan(row.pop("graded")), "this judge has no verdicts by log-probs"
    assert row == {
        "evaluated_on": "hh",
        "judge_name": "",
        "trained_on": "hh",
        "loss": "dpo",
        "settings": "beta=0.1",
        "seed": 1,
        "cell": "hh-dpo-0.1-1",
        "id": "hh-2",
        "status": "ok",
        "preference": 1.0,
        "flipped": False,
        "first": 0.5,
        "tokens": 12,
        "characters": 100,
        "baseline_characters": 80,
        "finished": True,
        "kl": 5.0,  # logp -15, reference_logp -20
    }


def test_a_failed_judgement_keeps_its_status_and_has_no_preference(results):
    rows = results.prompts.query("cell == 'hh-rpo_paired-0.1-0.5-1' and evaluated_on == 'hh'")
    assert rows["status"].tolist() == ["failed", "ok", "unparsable", "ok"]
    assert rows["preference"].isna().tolist() == [True, False, True, False]


def test_a_preference_beside_a_failure_is_not_believed(tmp_path):
    """Whatever a judge writes there: only the statuses ok and tie count."""
    cell = plan_cell("dpo", {"beta": 0.1}, 0)
    folder = write_plan(tmp_path / "run", [cell])
    write_cell(folder, cell, {"hh": [1, 1]})
    file = folder / "cells" / cell["key"] / "judge-hh" / "judgements.jsonl"
    rows = [json.loads(line) | {"status": "failed", "preference": 0} for line in file.read_text().splitlines()]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert load_results(folder).prompts["preference"].isna().all()


def test_each_cell_says_how_far_it_is_on_each_task(results):
    states = results.evaluations.set_index(["cell", "evaluated_on"])["state"]
    assert states["hh-dpo-0.1-0", "alpaca_eval"] == "done"
    assert states["hh-ipo-0.1-0", "hh"] == states["hh-ipo-0.1-0", "alpaca_eval"] == "failed"
    assert states["tldr-rpo_paired-0.1-0.5-0", "tldr"] == "not run yet"


def test_the_training_of_a_cell_is_a_row(results):
    cells = results.cells.set_index("cell")
    assert cells.loc["hh-dpo-0.1-0", ["steps", "examples", "tokens", "forward_passes"]].tolist() == [4, 32, 1000, 64]
    assert cells.loc["hh-dpo-0.1-0", ["dev_accuracy", "dev_margin"]].tolist() == [0.6, 2.0]
    assert math.isnan(cells.loc["hh-sft--0", "dev_accuracy"])
    assert math.isnan(cells.loc["hh-ipo-0.1-0", "steps"])


def test_cells_that_the_plan_does_not_ask_for_are_left_out(tmp_path):
    cells = [plan_cell("dpo", {"beta": beta}, 0) for beta in (0.1, 0.2)]
    folder = write_plan(tmp_path / "run", cells[:1])
    for cell in cells:
        write_cell(folder, cell, {"hh": [1, 0]})
    assert load_results(folder).prompts["cell"].unique().tolist() == [cells[0]["key"]]


def test_a_setting_that_a_grid_names_twice_is_one_cell(tmp_path):
    cell = plan_cell("dpo", {"beta": 0.1}, 0)
    folder = write_plan(tmp_path / "run", [cell, cell])
    write_cell(folder, cell, {"hh": [1, 0]})
    assert len(load_results(folder).prompts) == 2


def test_judgements_of_earlier_samples_are_not_used(tmp_path):
    """Sampled again and stopped before judging: the verdicts on disk are about responses that are gone."""
    cell = plan_cell("dpo", {"beta": 0.1}, 0)
    folder = write_plan(tmp_path / "run", [cell])
    write_cell(folder, cell, {"hh": [1, 1]}, kl=[1.0, 2.0])
    write_samples(folder, cell, "hh", [7.0, 8.0])
    results = load_results(folder)
    assert results.evaluations["state"].tolist() == ["not judged yet"]
    assert results.prompts["status"].tolist() == ["not judged", "not judged"]
    assert results.prompts["kl"].tolist() == [7.0, 8.0]


def test_samples_of_another_decoding_are_not_used(tmp_path):
    cell = plan_cell("dpo", {"beta": 0.1}, 0)
    folder = write_plan(tmp_path / "run", [cell])
    write_cell(folder, cell, {"hh": [1, 1]}, kl=[1.0, 2.0])
    write_samples(folder, cell, "hh", [1.0, 2.0], decoding=DECODING | {"temperature": 0.0})
    assert load_results(folder).evaluations["state"].tolist() == ["not run yet"]


@pytest.mark.parametrize(("task", "states"), [("hh", ["failed", "done"]), ("alpaca_eval", ["done", "failed"])])
def test_a_stage_that_failed_on_one_task_leaves_the_other_task(tmp_path, task, states):
    """What the failed stage had left in an earlier run is there still, and is not used."""
    cell = plan_cell("dpo", {"beta": 0.1}, 0, evaluated_on=("hh", "alpaca_eval"))
    folder = write_plan(tmp_path / "run", [cell])
    write_cell(folder, cell, {"hh": [1, 1], "alpaca_eval": [1, 1]})
    write_failures(folder, cell, Failure("judge", "no key", task))
    assert load_results(folder).evaluations["state"].tolist() == states


def test_each_evaluation_has_the_reason_of_its_own_failure(tmp_path):
    """Those of dev questions are no test result's; what ended the cell explains what is missing after it."""
    cell = plan_cell("dpo", {"beta": 0.1}, 0, evaluated_on=("hh", "alpaca_eval"))
    folder = write_plan(tmp_path / "run", [cell])
    write_cell(folder, cell, {"hh": [1, 1], "alpaca_eval": [1, 1]})
    write_failures(folder, cell, Failure("judge", "first", "hh"), Failure("judge", "second", "alpaca_eval"))
    assert load_results(folder).evaluations["reason"].tolist() == ["first", "second"]
    write_failures(folder, cell, Failure("judge", "on dev", "hh", split="dev"))
    assert load_results(folder).evaluations["state"].tolist() == ["done", "done"]
    shutil.rmtree(folder / "cells" / cell["key"] / "judge-alpaca_eval")
    write_failures(folder, cell, Failure("measure", "no reward", "hh", split="dev"))
    frame = load_results(folder).evaluations
    assert frame["state"].tolist() == ["done", "failed"] and frame["stage"].tolist() == ["", "measure-dev-hh"]


def test_a_folder_without_a_plan_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"no plan\.json.*run it first: python -m harness run"):
        load_results(tmp_path)


@pytest.mark.parametrize(
    "name", ["cells/hh-dpo-0.1-0/sample-hh/samples.jsonl", "cells/hh-dpo-0.1-0/judge-hh/judge.json"]
)
def test_a_damaged_file_is_named(tmp_path, name):
    folder = write_example(tmp_path / "run")
    (folder / name).write_text('{"id": ')
    with pytest.raises(UserError, match=name):
        load_results(folder)


def test_a_policy_of_another_cell_is_not_reported_as_this_one(tmp_path):
    inputs = {"loss": "dpo", "seed": 0}
    cell = plan_cell("dpo", {"beta": 0.1}, 0) | {"key": key_of(inputs)}
    folder = write_plan(tmp_path / "run", [cell])
    write_cell(folder, cell, {"hh": [1, 0]})
    train = folder / "cells" / cell["key"] / "train"
    write_json(train / "artifact.json", {"inputs": inputs, "files": {}})
    assert load_results(folder).evaluations["state"].tolist() == ["done"]
    write_json(train / "artifact.json", {"inputs": {"loss": "ipo", "seed": 0}, "files": {}})
    with pytest.raises(UserError, match=r"train: artifact\.json names the inputs of another cell"):
        load_results(folder)


def test_a_field_that_another_version_did_not_write_is_named(tmp_path):
    folder = write_example(tmp_path / "run")
    file = folder / "cells/hh-dpo-0.1-0/sample-hh/samples.jsonl"
    first, second, *rest = [json.loads(line) for line in file.read_text().splitlines()]
    del second["tokens"]
    file.write_text("\n".join(map(json.dumps, [first, second, *rest])))
    with pytest.raises(
        UserError, match=r"sample-hh/samples\.jsonl: row 2: no field 'tokens'; another version wrote it"
    ):
        load_results(folder)
