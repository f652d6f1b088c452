"""Places that results, a report or a model cannot be written to are said before anything is done."""

from __future__ import annotations

import pytest

from harness.cli.main import main
from tests.tiny_experiment import write_experiment


def test_a_results_folder_that_cannot_be_written(tmp_path, tiny_model, tiny_encoder, capsys):
    (tmp_path / "file").write_text("not a folder")
    path = write_experiment(tmp_path, tiny_model, tiny_encoder, results=str(tmp_path / "file"))
    assert main(["run", str(path)]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["store", "tiny", "tiny/cells"])
@pytest.mark.parametrize("what", ["a file", "a link to nothing"])
def test_what_is_in_the_place_of_results_is_said_before_the_announcement(
    tmp_path, tiny_model, tiny_encoder, capsys, place, what
):
    taken = tmp_path / "results" / place
    taken.parent.mkdir(parents=True)
    taken.write_text("") if what == "a file" else taken.symlink_to(tmp_path / "gone")
    assert main(["run", str(write_experiment(tmp_path, tiny_model, tiny_encoder))]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert f"results folder {taken} cannot be written" in captured.err


def test_a_plan_needs_no_folder_that_can_be_written(tmp_path, tiny_model, tiny_encoder, capsys):
    (tmp_path / "results").write_text("a file")
    assert main(["plan", str(write_experiment(tmp_path, tiny_model, tiny_encoder))]) == 0


def test_a_report_says_first_that_its_folder_is_taken(tmp_path, tiny_model, tiny_encoder, capsys):
    path = write_experiment(tmp_path, tiny_model, tiny_encoder)
    (tmp_path / "results" / "tiny").mkdir(parents=True)
    (tmp_path / "results" / "tiny" / "plots").write_text("a file")
    assert main(["report", str(path)]) == 2
    assert "cannot write the report into" in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_pretrain_says_before_it_trains_that_a_place_is_taken(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"results: {tmp_path}/results\nmodel: {{from_scratch: {{texts: 10}}}}\n")
    (tmp_path / "taken").write_text("a file")
    assert main(["pretrain", str(recipe), "--into", str(tmp_path / "taken")]) == 2
    assert "--into" in (said := capsys.readouterr().err) and "cannot be written" in said
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert main(["pretrain", str(recipe), "--into", str(tmp_path / "full")]) == 2
    assert "it is not empty, and nothing is overwritten" in capsys.readouterr().err
    (tmp_path / "results").write_text("a file")
    assert main(["pretrain", str(recipe)]) == 2
    assert "results folder" in capsys.readouterr().err
