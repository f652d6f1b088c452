"""A report says where its policies were not computed alike."""

from __future__ import annotations

import pytest

from harness.core.record_files import write_record
from harness.core.records import TRAIN, Environment, cell_folder
from harness.reporting.mixed import mixed_lines
from tests.reporting.results_folder import plan_cell, write_cell, write_plan

CPU = {"device": "cpu", "fp32 products": "highest", "attention": "sdpa"}
VERSIONS = {"torch": "2.13.0", "transformers": "5.0", "numpy": "2.0", "peft": None}


@pytest.fixture
def lines(tmp_path):
    """Return what is said of three policies with these numerics and versions, and an SFT policy in the store."""

    def lines(*environments: Environment) -> list[str]:
        cells = [plan_cell("dpo", {"beta": beta}, 0) for beta in range(len(environments) - 1)]
        folder = write_plan(tmp_path / "run", cells, starts={"hh": "key"})
        start, *others = environments
        folders = [tmp_path / "store/sft/key", *(cell_folder(folder, cell["key"]) / TRAIN for cell in cells)]
        for cell in cells:
            write_cell(folder, cell, {"hh": [1, 0]})
        for place, environment in zip(folders, (start, *others), strict=True):
            place.mkdir(parents=True, exist_ok=True)
            write_record(place, environment)
        return mixed_lines(folder)

    return lines


def test_policies_that_were_computed_alike_need_no_word(lines):
    """The machine, the commit and packages that change no number may differ."""
    one = Environment(versions=VERSIONS, numerics=CPU, hardware={"cpus": 2})
    assert lines(one, one, Environment({"commit": "a"}, {"cpus": 64}, VERSIONS | {"numpy": "1.0"}, "on", CPU)) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"versions": VERSIONS | {"torch": "2.12.0"}}, "torch: 2.13.0 (2 of 3), 2.12.0 (1 of 3)"),
        ({"numerics": CPU | {"device": "H100"}}, "device: cpu (2 of 3), H100 (1 of 3)"),
        ({"numerics": CPU | {"attention": "eager"}}, "attention: sdpa (2 of 3), eager (1 of 3)"),
        ({"numerics": CPU | {"fp32 products": "high"}}, "fp32 products: highest (2 of 3), high (1 of 3)"),
    ],
)
@pytest.mark.parametrize("place", [0, 2], ids=["the start", "a cell"])
def test_a_policy_that_was_not_is_told_with_what_differs(lines, change, line, place):
    usual = {"versions": VERSIONS, "numerics": CPU}
    environments = [Environment(**(usual | change if i == place else usual)) for i in range(3)]
    expected = f"the policies of this report differ in {line}; their numbers may differ by rounding"
    assert lines(*environments) == [expected]


def test_an_environment_of_an_earlier_version_says_nothing_of_what_it_does_not_know(lines):
    assert lines(Environment(versions=VERSIONS), Environment(versions=VERSIONS, numerics=CPU), Environment()) == []


def test_a_damaged_environment_is_named(lines, tmp_path):
    lines(Environment(), Environment(), Environment())
    (tmp_path / "store/sft/key/environment.json").write_text("[")
    (line,) = mixed_lines(tmp_path / "run")
    assert f"{tmp_path}/store/sft/key/environment.json: cannot be read" in line
