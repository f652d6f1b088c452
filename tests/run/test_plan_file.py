"""plan.json says which cells a report shows: those of the last run, and other seeds of the same experiment."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import pytest

from harness.core.store import read_json
from harness.run.plan_file import write_plan
from tests.planned import plan_of
from tests.tiny_experiment import write_experiment


@pytest.fixture(scope="module")
def planned_with(tmp_path_factory, tiny_model, tiny_encoder):
    """Return a function that plans an experiment with overrides, once."""
    path = write_experiment(tmp_path_factory.mktemp("planned"), tiny_model, tiny_encoder, losses={"dpo": {}})
    return cache(partial(plan_of, path))


@pytest.fixture
def planned(tmp_path, planned_with):
    """Return a function that plans an experiment, writes its plan, and returns each cell's (seed, loss) in the file."""

    def planned(*overrides: str, judge: str = "gold@1") -> list[tuple[int, str]]:
        folder = Path(tmp_path / "plans")
        folder.mkdir(exist_ok=True)
        planned.said = write_plan(planned_with(*overrides), {"hh/hh/": judge}, folder).lines
        return [(cell["seed"], cell["loss"]) for cell in read_json(folder / "plan.json")["cells"]]

    return planned


def test_a_run_of_other_seeds_does_not_overwrite_the_plan_of_the_first(planned):
    assert planned("seeds=[0]") == [(0, "sft"), (0, "dpo")]
    assert planned.said == []
    assert planned("seeds=[1]") == [(1, "sft"), (1, "dpo"), (0, "sft"), (0, "dpo")]
    assert planned.said == ["2 cells (seeds 0) of earlier runs of this experiment stay in its report"]
    assert sorted(planned("seeds=[0,1]")) == [(0, "dpo"), (0, "sft"), (1, "dpo"), (1, "sft")]


def test_a_loss_that_comes_later_stands_beside_what_was_there(planned):
    planned("seeds=[0,1]")
    assert set(planned("seeds=[0]", "losses={ipo: {}}")) == {
        *((seed, loss) for seed in (0, 1) for loss in ("sft", "dpo")),
        (0, "ipo"),
    }


@pytest.mark.parametrize("change", ["train.lr=0.5", "losses.dpo.beta=0.5"])
def test_other_seeds_of_other_policies_do_not_stay_in_the_table(planned, change):
    planned("seeds=[0]")
    assert (0, "dpo") not in planned("seeds=[1]", change)


@pytest.mark.parametrize(
    ("change", "judge"),
    [("sample.top_p=0.5", "gold@1"), ("tasks.hh.test_prompts=5", "gold@1"), ("seeds=[1]", "gold@2")],
)
def test_seeds_that_were_evaluated_otherwise_leave_the_table_and_it_is_said(planned, change, judge):
    planned("seeds=[0]")
    assert planned("seeds=[1]", change, judge=judge) == [(1, "sft"), (1, "dpo")]
    (line,) = planned.said
    assert (
        line.startswith("2 cells (seeds 0) of earlier runs leave the report, because") and "all seeds together" in line
    )


def test_settings_that_change_no_number_leave_the_table_as_it_is(planned):
    planned("seeds=[0]")
    speed = ["train.micro_batch_tokens=1400", "sample.batch_size=3", "sft.checkpoint_every=2"]
    unused = ["model.lora.rank=3", "figures=true"]
    assert planned("seeds=[1]", *speed, *unused) == [(1, "sft"), (1, "dpo"), (0, "sft"), (0, "dpo")]


@pytest.mark.parametrize("content", ["{", '{"experiment": "tiny"}'])
def test_a_plan_that_cannot_be_read_is_replaced_and_it_is_said(planned, tmp_path, content):
    planned("seeds=[0]")
    (tmp_path / "plans" / "plan.json").write_text(content)
    assert planned("seeds=[1]") == [(1, "sft"), (1, "dpo")]
    assert planned.said == [
        "plan.json was damaged and is replaced: cells of earlier runs leave the report; run their seeds too"
    ]
