"""plan.json says which cells a report shows: those of the last run, and other seeds of the same experiment."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.core.store import read_json
from harness.experiment.draft import draft_plan
from harness.experiment.file import load_experiment
from harness.experiment.plan import make_plan
from harness.run.plan_file import write_plan
from tests.tiny_experiment import write_experiment


@pytest.fixture
def planned(tmp_path, tiny_model, tiny_encoder):
    """Return a function that plans an experiment, writes its plan, and returns each cell's (seed, loss) in the file."""
    path = write_experiment(tmp_path, tiny_model, tiny_encoder, losses={"dpo": {}})

    def planned(*overrides: str) -> list[tuple[int, str]]:
        draft = draft_plan(load_experiment(path, overrides))
        folder = Path(tmp_path / "plans")
        folder.mkdir(exist_ok=True)
        write_plan(make_plan(draft, draft.model()), folder)
        return [(cell["seed"], cell["loss"]) for cell in read_json(folder / "plan.json")["cells"]]

    return planned


def test_a_run_of_other_seeds_does_not_overwrite_the_plan_of_the_first(planned):
    assert planned("seeds=[0]") == [(0, "sft"), (0, "dpo")]
    assert planned("seeds=[1]") == [(1, "sft"), (1, "dpo"), (0, "sft"), (0, "dpo")]
    assert sorted(planned("seeds=[0,1]")) == [(0, "dpo"), (0, "sft"), (1, "dpo"), (1, "sft")]


def test_a_loss_that_comes_later_stands_beside_what_was_there(planned):
    planned("seeds=[0,1]")
    assert set(planned("seeds=[0]", "losses={ipo: {}}")) == {
        *((seed, loss) for seed in (0, 1) for loss in ("sft", "dpo")),
        (0, "ipo"),
    }


@pytest.mark.parametrize("change", ["train.lr=0.5", "sample.top_p=0.5", "tasks.hh.test_prompts=5"])
def test_what_was_trained_or_evaluated_otherwise_does_not_stay_in_the_table(planned, change):
    planned("seeds=[0]")
    assert planned("seeds=[1]", change) == [(1, "sft"), (1, "dpo")]


@pytest.mark.parametrize("content", ["{", '{"experiment": "tiny"}'])
def test_a_plan_that_cannot_be_read_is_replaced(planned, tmp_path, content):
    planned("seeds=[0]")
    (tmp_path / "plans" / "plan.json").write_text(content)
    assert planned("seeds=[1]") == [(1, "sft"), (1, "dpo")]
