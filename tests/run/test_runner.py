"""The main job, on a tiny model: from an experiment file to a leaderboard, and what happens the second time."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from harness.backbones.language_model.policy import TENSORS
from harness.cli.main import main
from harness.core.hashing import hash_file
from harness.core.record_files import read_failures
from harness.core.store import read_json, read_jsonl, write_json
from tests.tiny_experiment import FITTED, LOSSES, run, write_experiment


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model, tiny_encoder) -> Path:
    """The folder of an experiment that has run; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("finished")
    path = write_experiment(folder, tiny_model, tiny_encoder, judge=FITTED)
    assert run(path, "figures=true") == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy to change. Its experiment file still names the original's results, so each run overrides that."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def rerun(folder: Path, *overrides: str, name: str = "tiny") -> int:
    return run(folder / f"{name}.yaml", f"results={folder / 'results'}", *overrides)


def results(folder: Path, name: str = "tiny") -> Path:
    return folder / "results" / name


def task_of(rows: list[dict], path: Path) -> dict:
    """Write rows of a user's own data and return the task that they make."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"train_pairs": 24, "dev_pairs": 8, "test_prompts": 4, "max_prompt_tokens": 64, "max_completion_tokens": 16}
    return {"kind": "preferences", "data": str(path), **sizes}


def leaderboard(folder: Path, name: str = "tiny") -> pd.DataFrame:
    return pd.read_csv(results(folder, name) / "leaderboard.csv")


def artifacts(folder: Path) -> dict[str, int]:
    """Every artifact with the time at which it was made."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("artifact.json")}


def cell_folder(folder: Path, loss: str, name: str = "tiny") -> Path:
    plan = read_json(results(folder, name) / "plan.json")
    return results(folder, name) / "cells" / next(c["key"] for c in plan["cells"] if c["loss"] == loss)


def test_the_run_leaves_leaderboard_tables_plots_and_manifest(finished):
    folder = results(finished)
    for file in ("leaderboard.csv", "leaderboard.md", "prompts.csv", "manifest.json", "plan.json"):
        assert (folder / file).stat().st_size > 0, file
    plots = {p.stem for p in (folder / "plots").glob("*.png")}
    assert plots == {"win_rate", "training_curves", "win_rate_vs_kl", "length"}
    assert plots == {p.stem for p in (folder / "plots").glob("*.pdf")}


def test_the_leaderboard_has_a_row_for_sft_and_each_loss_on_each_task(finished):
    frame = leaderboard(finished)
    assert set(zip(frame.task, frame.loss, strict=True)) == {
        (task, loss) for task in ("hh", "alpaca_eval") for loss in ("sft", *LOSSES)
    }
    assert (frame.trained_on == "hh").all()
    assert (frame.coverage == 1).all() and (frame.status == "ok").all()
    assert set(frame.n[frame.task == "hh"]) == {6} and set(frame.n[frame.task == "alpaca_eval"]) == {4}
    assert frame.judge.str.startswith("preference_model:").all()
    assert frame.judge_agreement.between(0, 1).all()


def test_every_loss_trains_on_the_same_budget(finished):
    trained = leaderboard(finished).query("task == 'hh' and loss != 'sft'")
    for column in ("steps", "examples", "tokens"):
        assert trained[column].nunique() == 1, column
    assert set(trained.steps) == {3} and set(trained.examples) == {48}


def test_the_sft_policy_has_no_divergence_from_itself(finished):
    rows = read_jsonl(cell_folder(finished, "sft") / "sample-hh" / "samples.jsonl")
    assert all(row["logp"] == row["reference_logp"] < 0 for row in rows)
    trained = read_jsonl(cell_folder(finished, "dpo") / "sample-hh" / "samples.jsonl")
    assert all(row["logp"] != row["reference_logp"] for row in trained)


def test_training_leaves_its_curve_from_step_0(finished):
    rows = read_jsonl(cell_folder(finished, "rpo_paired") / "train" / "metrics.jsonl")
    assert [r["step"] for r in rows if r["split"] == "train"] == [1, 2, 3]
    dev = [r for r in rows if r["split"] == "dev"]
    assert [r["step"] for r in dev] == [0, 2, 3]
    assert dev[0]["loss"] == pytest.approx(0.693147, abs=1e-4) and dev[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert dev[-1]["kl"] > 0


def test_the_manifest_says_what_the_run_was_made_of(finished):
    manifest = read_json(results(finished) / "manifest.json")
    assert manifest["environment"]["versions"]["torch"] and manifest["environment"]["hardware"]["cpus"]
    environment = read_json(cell_folder(finished, "dpo") / "train" / "environment.json")
    numerics = {"device": "cpu", "fp32 products": "highest", "attention": "sdpa"}
    assert environment == manifest["environment"] | {"shared_prompt": "on", "numerics": numerics}
    assert read_json(sft_policy(finished) / "environment.json") == environment
    assert manifest["config"]["train"]["lr"] == 1e-3
    assert set(manifest["hashes"]) == {"model", "encoder", "data"}
    counts = manifest["counts"]["hh"]
    assert counts["train: used"] == 24 and counts["test: used"] == 6
    assert "train: prompt truncated" in counts


def test_a_second_run_computes_nothing_and_mends_a_damaged_manifest(copy, capsys):
    before, manifest = artifacts(copy), results(copy) / "manifest.json"
    written = read_json(manifest)
    write_json(manifest, written | {"counts": [1]})
    assert rerun(copy) == 0
    assert artifacts(copy) == before and read_json(manifest)["counts"] == written["counts"]
    assert "(5 already trained)" in capsys.readouterr().out


@pytest.mark.slow
def test_deleting_one_cell_recomputes_that_cell_alone_with_the_same_numbers(copy):
    assert rerun(copy) == 0  # under the copy's own results folder everything is still there
    before, made = leaderboard(copy), artifacts(copy)
    gone = cell_folder(copy, "rpo_paired")
    shutil.rmtree(gone)
    assert rerun(copy) == 0
    again = artifacts(copy)
    assert {path for path in again if again[path] != made[path]} == {path for path in made if gone.name in path}
    pd.testing.assert_frame_equal(leaderboard(copy).drop(columns="train_seconds"), before.drop(columns="train_seconds"))


def sft_policy(folder: Path) -> Path:
    (path,) = (folder / "results" / "store" / "sft").glob("[!.]*")
    return path


def starts(folder: Path) -> set[str]:
    """The hashes of the SFT policies that the cells were trained from."""
    return {read_json(path)[TENSORS] for path in results(folder).glob("cells/*/train/start.json")}


@pytest.mark.slow
def test_cells_of_another_sft_policy_are_trained_again(copy):
    """The store's SFT policy may have been trained again on another machine, and so have other weights."""
    assert rerun(copy) == 0
    path = sft_policy(copy)
    save_file({name: 1.01 * tensor for name, tensor in load_file(path / TENSORS).items()}, path / TENSORS)
    manifest = read_json(path / "artifact.json")
    manifest["files"][TENSORS] = hash_file(path / TENSORS)
    write_json(path / "artifact.json", manifest)
    made = artifacts(copy)
    assert rerun(copy) == 0
    again = artifacts(copy)
    cells = [name for name in made if "/cells/" in name]
    assert all(again[name] != made[name] for name in cells) and starts(copy) == {manifest["files"][TENSORS]}


@pytest.mark.slow
def test_so_are_cells_whose_sft_policy_was_deleted_and_comes_out_otherwise(copy):
    assert rerun(copy) == 0
    for loss in ("sft", "dpo"):
        write_json(cell_folder(copy, loss) / "train" / "start.json", {TENSORS: "0" * 64})
    shutil.rmtree(sft_policy(copy))
    assert rerun(copy, "sample.top_p=0.5") == 0
    assert starts(copy) == {read_json(sft_policy(copy) / "artifact.json")["files"][TENSORS]}
    assert (leaderboard(copy).status == "ok").all()


@pytest.mark.slow
def test_the_manifest_is_of_the_last_run_with_other_settings(copy):
    assert rerun(copy) == 0
    path = results(copy) / "manifest.json"
    before = path.stat().st_mtime_ns
    assert rerun(copy) == 0
    assert path.stat().st_mtime_ns == before, "a run that finds everything done leaves it"
    assert rerun(copy, "sample.top_p=0.5") == 0
    assert read_json(path)["config"]["sample"]["top_p"] == 0.5


def test_report_rebuilds_everything_from_the_store(copy):
    """The figures too, which a run that is not to draw them takes away: they would be of another run."""
    folder = results(copy)
    files = ["leaderboard.csv", "leaderboard.md", "prompts.csv"]
    before = {file: (folder / file).read_bytes() for file in files}
    assert len(list((folder / "plots").iterdir())) == 8
    assert rerun(copy, "figures=false") == 0
    assert not list((folder / "plots").iterdir())
    for file in files:
        (folder / file).unlink()
    shutil.rmtree(folder / "plots")
    assert main(["report", str(copy / "tiny.yaml"), f"results={copy / 'results'}"]) == 0
    assert {file: (folder / file).read_bytes() for file in files} == before
    assert len(list((folder / "plots").glob("*"))) == 8


@pytest.mark.slow
def test_another_experiment_on_the_same_data_shares_what_was_computed(copy):
    before = artifacts(copy / "results" / "store")
    assert rerun(copy, "name=other", "losses={rpo_uniform: {}, rpo_diagonal: {}}", "seeds=[1]") == 0
    after = artifacts(copy / "results" / "store")
    assert after == before  # the same SFT, reference log-probs, trunk, embeddings and judge
    assert sum(path.startswith("reference/") for path in after) == 2, "of the train and of the dev pairs, once"
    assert set(leaderboard(copy, "other").loss) == {
        "sft",
        "dpo",
        "ipo",
        "rpo_paired",
        "rpo_unpaired",
        "rpo_uniform",
        "rpo_diagonal",
    }


@pytest.mark.slow
def test_a_loss_of_the_user_s_own_runs_beside_the_others(copy):
    plugin = copy / "my_loss.py"
    plugin.write_text(
        "from losses import register_loss\n\n"
        '@register_loss("hinge_of_mine", paper="none", grid={"margin": [1.0, 2.0]}, '
        "start_value=lambda margin: margin)\n"
        "def hinge_of_mine(batch, *, margin: float = 1.0):\n"
        '    """max(0, margin - Delta)."""\n'
        "    return (margin - batch.logratio_margin).clamp(min=0)\n"
    )
    assert rerun(copy, f"plugins=[{plugin}]", "losses={hinge_of_mine: {margin: grid}}") == 0
    frame = leaderboard(copy).query("loss == 'hinge_of_mine' and task == 'hh'")
    assert sorted(frame.settings) == ["margin=1.0", "margin=2.0"]
    # Changing the code of a loss makes another cell; changing a comment does not.
    before = artifacts(copy)
    plugin.write_text(plugin.read_text() + "# a comment\n")
    assert rerun(copy, f"plugins=[{plugin}]", "losses={hinge_of_mine: {margin: grid}}") == 0
    assert artifacts(copy) == before
    plugin.write_text(plugin.read_text().replace("clamp(min=0)", "clamp(min=0) * 1.0"))
    assert rerun(copy, f"plugins=[{plugin}]", "losses={hinge_of_mine: {margin: grid}}") == 0
    assert len(set(artifacts(copy)) - set(before)) == 2 * 5


@pytest.mark.slow
def test_a_failed_cell_fails_alone_says_why_and_is_retried(copy, capsys):
    plugin = copy / "fragile.py"
    plugin.write_text(
        "import os\nfrom losses import register_loss\n\n"
        '@register_loss("fragile")\n'
        "def fragile(batch, *, beta: float = 0.1):\n"
        '    """Fails while a file says so."""\n'
        f"    if os.path.exists({str(copy / 'broken')!r}):\n"
        '        raise RuntimeError("the | disk is on fire")\n'
        "    return -beta * batch.logratio_margin\n"
    )
    (copy / "broken").touch()
    arguments = (f"plugins=[{plugin}]", "losses={fragile: {}}")
    assert rerun(copy, *arguments) == 1
    assert "the | disk is on fire" in capsys.readouterr().out
    row = leaderboard(copy).query("loss == 'fragile' and task == 'hh'").iloc[0]
    assert row.status.startswith("failed") and "the | disk is on fire" in row.status and pd.isna(row.win_rate)
    assert (leaderboard(copy).query("loss != 'fragile'").status == "ok").all()
    (failure,) = read_failures(cell_folder(copy, "fragile"))
    assert failure.stage == "train" and "the | disk is on fire" in failure.traceback
    (copy / "broken").unlink()
    assert rerun(copy, *arguments) == 0
    assert leaderboard(copy).query("loss == 'fragile' and task == 'hh'").iloc[0].status == "ok"
    assert read_failures(cell_folder(copy, "fragile")) == []


def test_a_loss_that_is_wrong_at_step_0_fails_before_it_trains(copy):
    plugin = copy / "wrong.py"
    plugin.write_text(
        "from losses import register_loss\n\n"
        '@register_loss("wrong", start_value=lambda beta: 0.0)\n'
        "def wrong(batch, *, beta: float = 0.1):\n"
        '    """Declares another start value than it has."""\n'
        "    return 1 + 0 * beta * batch.logratio_margin\n"
    )
    assert rerun(copy, f"plugins=[{plugin}]", "losses={wrong: {}}") == 1
    assert (
        "at step 0 the loss is 1; wrong declares a start value of 0"
        in read_failures(cell_folder(copy, "wrong"))[0].reason
    )


@pytest.mark.slow
def test_a_run_that_diverges_says_at_which_step(copy):
    assert rerun(copy, "train.lr=1e30", "train.clip=1e30", "losses={ipo: {}}") == 1
    assert "step 2: loss" in read_failures(cell_folder(copy, "ipo"))[0].reason


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_the_next_run_goes_on(copy, capsys):
    plugin = copy / "interrupted.py"
    plugin.write_text(
        "import os\nfrom losses import register_loss\n\n"
        '@register_loss("interrupted")\n'
        "def interrupted(batch, *, beta: float = 0.1):\n"
        '    """Ctrl-C, once."""\n'
        f"    if os.path.exists({str(copy / 'now')!r}):\n"
        f"        os.remove({str(copy / 'now')!r})\n"
        "        raise KeyboardInterrupt\n"
        "    return -beta * batch.logratio_margin\n"
    )
    before = artifacts(copy)
    (copy / "now").touch()
    arguments = (f"plugins=[{plugin}]", "losses={interrupted: {}}")
    assert rerun(copy, *arguments) == 130
    assert "interrupted: what was finished is kept" in capsys.readouterr().err
    assert artifacts(copy) == before and not list(copy.rglob("*.tmp-*"))
    assert rerun(copy, *arguments) == 0


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["full", "lora"])
def test_full_and_lora_tuning_run_as_well(tmp_path, tiny_model, tiny_encoder, tune):
    path = write_experiment(
        tmp_path, tiny_model, tiny_encoder, model={"name": str(tiny_model), "tune": tune}, losses={"rpo_paired": {}}
    )
    assert run(path) == 0
    assert set(leaderboard(tmp_path).loss) == {"sft", "rpo_paired"}
    assert not (tmp_path / "results" / "store" / "trunk").exists()


@pytest.mark.slow
def test_the_layout_of_rows_is_announced_kept_with_the_cell_and_in_no_key(copy, capsys):
    before = set(results(copy).glob("cells/*"))
    folder = cell_folder(copy, "dpo") / "train"
    shared = read_json(folder / "summary.json")
    shutil.rmtree(folder)
    assert rerun(copy, "train.shared_prompt=false") == 0
    notice = "every completion with a prompt of its own, not shared: train.shared_prompt=false"
    assert notice in capsys.readouterr().out
    assert set(results(copy).glob("cells/*")) == before
    assert read_json(folder / "environment.json")["shared_prompt"] == "train.shared_prompt=false"
    apart = read_json(folder / "summary.json")
    assert apart["dev"]["loss"] == pytest.approx(shared["dev"]["loss"], rel=1e-4)


@pytest.mark.slow
def test_the_size_of_the_frozen_layers_activations_is_announced(tmp_path, tiny_model, tiny_encoder, capsys):
    path = write_experiment(tmp_path, tiny_model, tiny_encoder, losses={"dpo": {}})
    assert run(path) == 0
    said = re.search(r"frozen  (\S+) GB of activations", capsys.readouterr().out).group(1)
    files = [path.stat().st_size for path in (tmp_path / "results" / "store" / "trunk").rglob("hidden.npy")]
    assert float(said) == pytest.approx(sum(files) / 1e9, rel=0.05) and len(files) == 2


def test_unpaired_data_train_unpaired_losses(tmp_path, tiny_model, tiny_encoder, capsys):
    rows = [
        {"prompt": f"What is {i} plus {i}?", "completion": f"It is {2 * i}." if good else "No idea.", "label": good}
        for i in range(300)
        for good in (True, False)
    ]
    task = task_of(rows, tmp_path / "data.jsonl")
    path = write_experiment(tmp_path, tiny_model, tiny_encoder, tasks={"sums": task}, losses={"rpo_unpaired": {}})
    assert run(path) == 0
    assert set(leaderboard(tmp_path).loss) == {"sft", "rpo_unpaired"}
    capsys.readouterr()
    assert run(path, "losses={dpo: {}}") == 2
    assert "loss 'dpo' needs pairs, and the data of task 'sums' are unpaired" in capsys.readouterr().err


@pytest.mark.slow
def test_scored_lists_train_paired_unpaired_and_listwise_losses_alike(tmp_path, tiny_model, tiny_encoder):
    """Every loss takes the same steps over the same prompts; the listwise one sees the further responses too."""
    rows = [
        {
            "prompt": f"what is {i} + 1?",
            "responses": [{"text": f"it is {i + k}", "score": -abs(k - 1)} for k in range(1, 3 + i % 3)],
        }
        for i in range(120)
    ]
    task = task_of(rows, tmp_path / "data.jsonl")
    losses = {"dpo": {}, "odpo": {}, "kto": {}, "bco_udm": {}, "plackett_luce": {}, "mrpo": {}, "dpo+wpo": {}}
    losses |= {"sr_dpo": {}, "sr_ipo": {}}
    path = write_experiment(
        tmp_path, tiny_model, tiny_encoder, tasks={"sums": task}, losses=losses, second_reference=str(tiny_model)
    )
    assert run(path) == 0
    frame = leaderboard(tmp_path).set_index("loss")
    assert (frame.status == "ok").all()
    assert set(frame.steps[list(losses)]) == {3}
    assert 48 < frame.examples["plackett_luce"] <= 96
    assert (frame.examples[[name for name in losses if name != "plackett_luce"]] == 48).all()
    assert frame.forward_passes["dpo"] == 48 and frame.forward_passes["dpo+wpo"] == 96
    # train and dev under SFT and under the second reference, and the mismatched pairs of both
    assert len(list((tmp_path / "results" / "store" / "reference").glob("[!.]*"))) == 6


@pytest.mark.slow
def test_several_seeds_share_a_row(copy):
    assert rerun(copy, "seeds=[0,1]") == 0
    frame = leaderboard(copy).query("task == 'hh'")
    assert len(frame) == 1 + len(LOSSES)
    assert set(frame.seeds) == {"0 1"} and set(frame.n) == {12}
    assert frame.cells.str.split().map(len).eq(2).all()
