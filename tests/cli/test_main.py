"""The command line: help, listings, and one clear line with exit status 2 for each thing a user can get wrong."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, GraniteConfig, GraniteForCausalLM

from harness.cli.main import COMMANDS, main
from harness.conformance.catalogue import losses_table
from losses import list_losses
from tests.conftest import REPOSITORY, build_tiny_model
from tests.tiny_experiment import FITTED, write_experiment

BUILT_IN = list_losses()  # at collection, nothing else is registered yet


def harness(*arguments: str, cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess:
    """Run the command as a user does: in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def refuses(tmp_path, tiny_model, tiny_encoder, capsys):
    """Run an experiment with changes that must be refused; return the one line that it says."""

    def refuses(*overrides: str, **changes) -> str:
        path = write_experiment(tmp_path, tiny_model, tiny_encoder, **changes)
        assert main(["run", str(path), *overrides]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
        assert captured.out == "", "nothing is announced before everything is checked"
        assert not (tmp_path / "results").exists(), "nothing half-written"
        return captured.err

    return refuses


def task(**changes) -> dict:
    return {"hh": {"train_pairs": 8, "dev_pairs": 4, "test_prompts": 4, "max_prompt_tokens": 96, **changes}}


def test_an_unknown_loss_suggests_the_nearest(refuses):
    assert "unknown loss 'rpo_pairs'; did you mean 'rpo_paired'?" in refuses(losses={"rpo_pairs": {}})


def test_an_unknown_hyperparameter_suggests_the_nearest(refuses):
    assert "loss 'dpo' has no hyper-parameter 'bta'; did you mean 'beta'?" in refuses(losses={"dpo": {"bta": 1.0}})


def test_a_hyperparameter_of_the_wrong_type(refuses):
    assert "loss 'dpo': beta must be a float above 0, got 'high'" in refuses(losses={"dpo": {"beta": [0.1, "high"]}})


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        ("dpo", {"beta": -1}, "loss 'dpo': beta must be a float above 0, got -1.0"),
        ("dpo", {"beta": 0}, "loss 'dpo': beta must be a float above 0, got 0.0"),
        ("ipo", {"tau": [0.1, 0]}, "loss 'ipo': tau must be a float above 0, got 0.0"),
        ("rpo_paired", {"temperature": float("inf")}, "temperature must be a float above 0, got inf"),
        ("cdpo", {"label_smoothing": 0.5}, "label_smoothing must be a float at least 0 and below 0.5, got 0.5"),
        ("dpo", {"beta": {"a": 1}}, "beta must be a float above 0, got {'a': 1}"),
        ("dpo", {"beta": [i / 1000 for i in range(1, 10_002)]}, "YAML node expansion exceeds"),
    ],
)
def test_a_hyperparameter_out_of_its_bounds(refuses, loss, settings, message):
    assert message in refuses(losses={loss: settings})


def test_settings_that_are_no_mapping(refuses):
    assert "losses.dpo: give hyper-parameters as a mapping" in refuses(losses={"dpo": 0.1})


def test_the_same_settings_twice(refuses):
    assert "losses.dpo: the grid holds the same settings twice" in refuses(losses={"dpo": {"beta": [0.1, 0.1]}})


def test_sft_is_no_loss(refuses):
    assert "'sft' needs no entry" in refuses(losses={"sft": {}, "dpo": {}})


def test_an_unknown_task_suggests_the_nearest(refuses):
    message = refuses(tasks={"tdlr": {}})
    assert "tasks.tdlr: unknown task 'tdlr'; did you mean 'tldr'?" in message


def test_a_task_that_evaluates_nothing_or_the_unknown(refuses):
    assert "tasks.alpaca_eval trains nothing: say whose" in refuses(tasks={**task(), "alpaca_eval": {}})
    assert "'tldr' is no training task of this experiment (hh)" in refuses(
        tasks={**task(), "alpaca_eval": {"evaluates": ["tldr"]}}
    )
    assert "none of them trains a policy" in refuses(tasks={"alpaca_eval": {"evaluates": ["hh"]}})


def test_an_unknown_judge_or_option(refuses):
    assert "unknown judge 'opneai'; did you mean 'openai'?" in refuses(judge={"kind": "opneai"})
    assert "judge (openai): unknown key 'modle'; did you mean 'model'?" in refuses(
        judge={"kind": "openai", "modle": "x"}
    )


def test_a_missing_key_for_a_remote_judge(refuses, monkeypatch):
    monkeypatch.delenv("A_KEY_NOBODY_HAS", raising=False)
    message = refuses(judge={"kind": "openai", "model": "gpt", "key_env": "A_KEY_NOBODY_HAS"})
    assert "A_KEY_NOBODY_HAS" in message


def test_a_missing_data_file(refuses, tmp_path):
    assert "no data at" in refuses(tasks=task(data=str(tmp_path / "nowhere.jsonl")))


def test_an_empty_data_file(refuses, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    assert "is empty: it holds no rows" in refuses(tasks=task(data=str(tmp_path / "empty.jsonl")))


def test_a_malformed_data_file_is_named_with_its_line(refuses, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": \n')
    assert "bad.jsonl:2: not valid JSON" in refuses(tasks=task(data=str(tmp_path / "bad.jsonl")))


def test_data_without_the_columns(refuses, tmp_path):
    (tmp_path / "columns.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejectd": "c"}\n')
    message = refuses(tasks=task(data=str(tmp_path / "columns.jsonl")))
    assert "columns.jsonl:1: no column 'rejected' (is 'rejectd' meant?)" in message


def test_a_loss_that_needs_scores_on_data_without(refuses):
    assert "loss 'odpo' needs scores, and 24 of 24 train examples of task 'hh' have none" in refuses(
        losses={"odpo": {}}
    )


def scored(folder, *, without: int = 0) -> dict:
    """A task of lists of responses; so many rows are pairs without scores instead."""
    rows = [
        {"prompt": f"q {i}", "responses": [{"text": f"{k}", "score": k} for k in range(2 + i % 3)]} for i in range(60)
    ]
    rows += [{"prompt": f"p {i}", "chosen": "a", "rejected": "b"} for i in range(without)]
    (folder / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return task(kind="preferences", data=str(folder / "lists.jsonl"), train_pairs=None, judge_pairs=None)


@pytest.mark.parametrize("loss", ["odpo", "plackett_luce"])
def test_a_loss_that_needs_all_scores_on_data_where_some_are_missing(refuses, tmp_path, loss):
    message = refuses(tasks=scored(tmp_path, without=30), losses={loss: {}})
    assert f"loss '{loss}' needs scores, and" in message and "train examples of task 'hh' have none" in message


def test_a_listwise_loss_on_unpaired_data(refuses, tmp_path):
    rows = [{"prompt": f"q {i // 2}", "completion": f"{i}", "label": i % 2 == 0} for i in range(400)]
    (tmp_path / "unpaired.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = task(kind="preferences", data=str(tmp_path / "unpaired.jsonl"))
    message = refuses(tasks=tasks, losses={"plackett_luce": {}})
    assert "loss 'plackett_luce' needs several responses to each prompt, and the data of task 'hh' are" in message


def test_a_loss_of_two_references_with_only_one(refuses):
    assert "loss 'mrpo' needs a second reference; name a model in 'second_reference'" in refuses(losses={"mrpo": {}})


def test_a_second_reference_that_reads_other_tokens(refuses, tiny_model, tmp_path, capsys):
    other = build_tiny_model(tmp_path / "other", vocabulary=400)
    capsys.readouterr()
    message = refuses(losses={"mrpo": {}}, second_reference=str(other))
    assert f"second_reference {other}: its tokenizer is not that of {tiny_model}" in message


def test_lengths_beyond_the_context(refuses):
    message = refuses(tasks=task(max_prompt_tokens=500, max_completion_tokens=100))
    assert "max_prompt_tokens=500 and max_completion_tokens=100 exceed the 512 tokens of context" in message


@pytest.mark.slow
def test_a_prompt_that_nothing_is_left_of(refuses):
    assert "max_prompt_tokens=5 leaves no room for a prompt" in refuses(tasks=task(max_prompt_tokens=5))
    assert "none is left within max_prompt_tokens=16" in refuses(tasks=task(max_prompt_tokens=16, overlong="drop"))


def test_a_model_that_is_not_there(refuses, tmp_path):
    assert "neither a packaged model, a folder, nor a hub id" in refuses(model={"name": "smollm2"})
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refuses(model={"name": str(tmp_path / "empty")})


def test_pickled_weights_are_not_loaded(refuses, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "has no .safetensors weights" in refuses(model={"name": str(folder)})


def test_a_hub_that_cannot_be_reached(refuses):
    assert "cannot be had from the hub" in refuses(model={"name": "nobody/no-such-model"})


def test_too_many_trained_layers(refuses, tiny_model):
    message = refuses(model={"name": str(tiny_model), "tune": "last_layers", "last_layers": 3})
    assert "model.last_layers=3, but the model has 3 layers" in message


def test_more_activations_of_frozen_layers_than_may_be_stored(refuses, tiny_model):
    model = {"name": str(tiny_model), "tune": "last_layers", "last_layers": 1, "trunk_cap_gb": 1e-6}
    message = refuses(model=model)
    assert "of the frozen layers' activations, and model.trunk_cap_gb is 1e-06; raise it, lower train_pairs" in message


def test_a_plugin_that_is_missing_or_broken(refuses, tmp_path):
    assert "plugin file nowhere.py does not exist" in refuses(plugins=["nowhere.py"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nx.y\n", "AttributeError: 'int' object has no attribute 'y' ({}:2)"),
        ("\nraise ValueError('one\\ntwo\\n\\nthree')\n", "ValueError: one two three ({}:2)"),
        ("import json\n\njson.loads('[')\n", "JSONDecodeError: Expecting value: line 1 column 2 (char 1) ({}:3)"),
        ("x = 1\n\ndef f():\n    y = = 2\n", "SyntaxError: invalid syntax ({}:4)"),
        (
            "def f():\nx = 1\n",
            "IndentationError: expected an indented block after function definition on line 1 ({}:2)",
        ),
        ("x = 1\nexec('y = = 2')\n", "SyntaxError: invalid syntax ({}:2)"),
        ("x = 1\nimport broken_by_syntax\n", "SyntaxError: invalid syntax ({}:3)"),
        ("import sys\n\nsys.exit(0)\n", "SystemExit: 0 ({}:3)"),
        ("import sys\nx = 1\nsys.exit('error: all\\nfine')\n", "SystemExit: error: all fine ({}:3)"),
        ("class Stop(BaseException):\n    pass\n\nraise Stop\n", "Stop: ({}:4)"),
        (
            "x = 1\n\ndef f():\n\treturn 1\n        return 2\n",
            "TabError: inconsistent use of tabs and spaces in indentation ({}:5)",
        ),
    ],
)
def test_an_error_in_a_plugin_names_the_user_s_line(refuses, tmp_path, monkeypatch, text, message):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_by_syntax.py").write_text("x = 1\ny = 2\nz = = 3\n")
    file = tmp_path / "broken.py"
    file.write_text(text)
    where = tmp_path / "broken_by_syntax.py" if "import broken" in text else file
    assert f"broken.py: {message.format(where)}\n" in refuses(plugins=[str(file)])


def test_two_plugins_with_one_file_name_are_two_modules(tmp_path, capsys):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "loss.py").write_text(
            f'from losses import register_loss\n\n@register_loss("{name}")\ndef loss(batch):\n    return 0\n'
        )
    plugins = [f"--plugin={tmp_path / name / 'loss.py'}" for name in ("first", "second")]
    assert main(["losses", "--json", *plugins]) == 0
    assert {"first", "second"} <= {loss["name"] for loss in json.loads(capsys.readouterr().out)}


def test_what_a_plugin_prints_is_not_in_the_output(tmp_path, capsys):
    (tmp_path / "prints.py").write_text("print('hello')\n")
    assert main(["losses", "--json", f"--plugin={tmp_path / 'prints.py'}"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) and captured.err == "hello\n"


def test_a_command_that_something_else_ends_has_not_succeeded(tmp_path, monkeypatch, capsys):
    """A loss that calls sys.exit while it is listed, for example."""
    (tmp_path / "exits.py").write_text(
        "import sys\nfrom losses import register_loss\n\n\n"
        '@register_loss("exits", start_value=lambda: sys.exit(0) if "--json" in sys.argv else 0.0)\n'
        "def exits(batch):\n    return batch.logratio_margin\n"
    )
    arguments = ["losses", "--json", f"--plugin={tmp_path / 'exits.py'}"]
    monkeypatch.setattr(sys, "argv", ["harness", *arguments])
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.splitlines()[-1] == "SystemExit: 0"


def test_a_plugin_that_takes_the_name_of_another_loss(refuses, tmp_path):
    (tmp_path / "thief.py").write_text(
        "from losses import register_loss\n\n"
        '@register_loss("dpo")\n'
        "def dpo(batch, *, beta: float = 0.1):\n"
        "    return batch.logratio_margin\n"
    )
    message = refuses(plugins=[str(tmp_path / "thief.py")])
    assert "the loss 'dpo' is registered twice" in message and "thief.py:3" in message and "losses/dpo.py" in message


def test_unpaired_data_of_one_class_alone(refuses, tmp_path):
    rows = [{"prompt": f"q{i}", "completion": "a", "label": True} for i in range(300)]
    (tmp_path / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {"mine": {"kind": "preferences", "data": str(tmp_path / "good.jsonl"), "max_prompt_tokens": 64}}
    assert "unpaired train examples none is rejected" in refuses(tasks=tasks, losses={"rpo_unpaired": {}})


def test_lora_targets_that_the_model_lacks(refuses, tiny_model):
    model = {"name": str(tiny_model), "tune": "lora", "lora": {"targets": "no_such_layer"}}
    assert "model.lora:" in refuses(model=model)


def another(folder: Path, to: Path, tensors=dict, **settings) -> dict:
    """Copy a model with other tensors and settings; return the section `model` that names it."""
    shutil.copytree(folder, to)
    weights, config = to / "model.safetensors", json.loads((to / "config.json").read_text())
    save_file(tensors(load_file(weights)), weights, metadata={"format": "pt"})
    (to / "config.json").write_text(json.dumps({**config, **settings}))
    return {"name": str(to)}


def test_a_model_that_lacks_weights(refuses, tiny_model, tmp_path):
    """As torch.compile leaves them: transformers would fill in random ones."""
    model = another(
        tiny_model, tmp_path / "compiled", lambda tensors: {f"_orig_mod.{name}": t for name, t in tensors.items()}
    )
    message = refuses(model=model)
    assert "compiled lacks the weights lm_head.weight, model.embed_tokens.weight," in message
    assert "(it has _orig_mod.model.embed_tokens.weight instead)" in message
    mrpo = {"losses": {"mrpo": {}}, "second_reference": model["name"]}
    assert "compiled lacks the weights" in refuses(model={"name": str(tiny_model)}, **mrpo)


def test_a_model_with_a_weight_that_is_no_number(refuses, tiny_model, tmp_path):
    def damage(tensors):
        tensors["model.norm.weight"][3] = float("nan")
        return tensors

    model = another(tiny_model, tmp_path / "nan", damage)
    assert "the weight model.norm.weight has NaN or infinite values" in refuses(model=model)


def test_another_vocabulary_in_the_configuration(refuses, tiny_model, tmp_path):
    model = another(tiny_model, tmp_path / "size", vocab_size=608)
    assert "has model.embed_tokens.weight in the shape (600, 32); by its config.json it is (608, 32)" in refuses(
        model=model
    )


@pytest.mark.parametrize("token", ["pad_token", "of the template"])
def test_a_token_that_the_model_has_no_embedding_for(refuses, tiny_model, tmp_path, token):
    model = another(tiny_model, tmp_path / "more")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "more")
    if token == "pad_token":
        tokenizer.add_special_tokens({"pad_token": "<new>"})
    else:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<new>"]})
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<new>")
    tokenizer.save_pretrained(tmp_path / "more")
    assert "its tokenizer has the id 600 for '<new>', and its embedding only 600 rows" in refuses(model=model)


def test_last_layers_of_a_model_whose_layers_have_other_names(refuses, tiny_model, tmp_path, capsys):
    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=600, n_embd=32, n_layer=3, n_head=4)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    capsys.readouterr()
    message = refuses(model={"name": str(folder), "tune": "last_layers", "last_layers": 1})
    assert "tune: last_layers does not know the layers of GPT2Model; use lora or full" in message


def test_a_second_reference_whose_logits_are_scaled(refuses, tiny_model, tmp_path, capsys):
    """Its log-probs would be wrong, like those of a model to be trained."""
    folder, sizes = tmp_path / "granite", {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = GraniteConfig(vocab_size=600, num_hidden_layers=1, num_key_value_heads=4, logits_scaling=8.0, **sizes)
    GraniteForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    capsys.readouterr()
    message = refuses(losses={"mrpo": {}}, second_reference=str(folder))
    assert "model granite: log-probs computed from its last hidden states" in message


def test_adapters_that_would_not_be_trained(refuses, tiny_model):
    model = {"name": str(tiny_model), "tune": "lora", "lora": {"targets": "q_proj, lm_head"}}
    assert "model.lora.targets: an adapter of lm_head would not be trained" in refuses(model=model)


def test_damaged_weights(refuses, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"not safetensors")
    assert "model in" in refuses(model={"name": str(tmp_path / "damaged")})


def test_a_revision_of_what_is_not_on_the_hub(refuses, tiny_model):
    assert "model.revision=main is for hub ids" in refuses(model={"name": str(tiny_model), "revision": "main"})


def test_a_judge_with_too_few_pairs_is_said_before_anything_is_written(tmp_path, tiny_model, tiny_encoder, capsys):
    path = write_experiment(tmp_path, tiny_model, tiny_encoder, judge=FITTED)
    assert main(["run", str(path), "tasks.hh.judge_pairs=5"]) == 2
    assert "too few to fit on" in capsys.readouterr().err
    assert not (tmp_path / "results" / "tiny").exists()


def test_a_report_takes_no_overrides_that_it_would_ignore(tmp_path, tiny_model, tiny_encoder, capsys):
    path = write_experiment(tmp_path, tiny_model, tiny_encoder)
    assert main(["report", str(path), "seeds=[1]"]) == 2
    assert "only name= and results= count" in capsys.readouterr().err


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


def test_a_report_without_a_run(tmp_path, tiny_model, tiny_encoder, capsys):
    path = write_experiment(tmp_path, tiny_model, tiny_encoder)
    assert main(["report", str(path)]) == 2
    assert "run it first" in capsys.readouterr().err


def test_losses_are_listed_with_what_they_declare(capsys):
    assert main(["losses", "--json"]) == 0
    listed = {loss["name"]: loss for loss in json.loads(capsys.readouterr().out)}
    assert listed["rpo_paired"]["paper"] == "2402.10958"
    assert listed["rpo_paired"]["needs"] == ["prompt_embeddings", "reference"]
    assert listed["rpo_paired"]["hyperparameters"]["temperature"] == {
        "type": "float",
        "bounds": "above 0",
        "default": 0.5,
        "grid": [0.25, 0.5, 0.75],
    }
    assert listed["ipo"]["reduction"] == "mean" and listed["ipo_sum"]["reduction"] == "sum"
    assert listed["rpo_unpaired"]["data"] == "unpaired"


def test_the_table_of_losses_names_every_loss(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["losses"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name in ("dpo", "ipo", "ipo_sum", "rpo_paired", "rpo_unpaired", "rpo_uniform", "rpo_diagonal", "2402.10958"):
        assert name in out


def test_a_user_s_losses_are_listed_too(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "from losses import register_loss\n\n"
        '@register_loss("mine", grid={"beta": [1.0]})\n'
        "def mine(batch, *, beta: float = 1.0):\n"
        '    """Mine."""\n'
        "    return -beta * batch.logratio_margin\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["losses", "--plugin", "mine.py", "--json"]) == 0
    assert [loss["name"] for loss in json.loads(capsys.readouterr().out)][-1] == "mine"


@pytest.mark.parametrize("command", [[], ["run"], ["report"], ["losses"], ["check"]])
def test_help_has_examples(command):
    result = harness(*command, "--help")
    assert result.returncode == 0
    assert "python -m harness" in result.stdout


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__.rpartition(".")[2])
def test_help_says_what_each_exit_status_means(command):
    assert re.search(r"^exit status: 0 .+, 2 something .*must be changed first$", command.EPILOG, re.MULTILINE)


def test_help_says_what_a_cell_is_and_where_the_keys_are_documented(capsys):
    for arguments, told in (
        (("--help",), "A cell is one policy"),
        (("run", "--help"), "documented in harness/core/config.py"),
    ):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
        assert told in capsys.readouterr().out
    assert (REPOSITORY / "harness/core/config.py").is_file()


def test_the_table_of_losses_breaks_no_word_at_80_columns():
    console = Console(width=80, record=True, file=io.StringIO())
    with console.capture() as captured:
        console.print(losses_table())
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    words = {word for line in lines for word in line.split()}
    assert {"hyper-parameters:", "reduction", "prompt_embeddings", "undesirable_weight:", *BUILT_IN} <= words


def test_a_command_without_arguments_says_what_is_missing():
    result = harness("run")
    assert result.returncode == 2 and "experiment" in result.stderr


def test_errors_reach_a_terminal_without_a_traceback(tmp_path):
    result = harness("run", "nowhere.yaml", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: no experiment file at nowhere.yaml\n"


@pytest.mark.parametrize(("value", "number"), [(".inf", "inf"), ("-.inf", "-inf"), (".nan", "nan"), ("1e400", "inf")])
def test_a_judge_s_option_that_is_no_finite_number(refuses, value, number):
    gold = {"kind": "gold", "reward": "tests.tiny_experiment:length"}
    assert f"judge.margin must be a number, got {number}\n" in refuses(f"judge.margin={value}", judge=gold)
    message = refuses(f"judges.x.margin={value}", judges={"x": gold}, judge={})
    assert message == f"error: judges.x.margin must be a number at least 0, got {number}\n"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"base_url": "localhost"}, "judges.x.base_url 'localhost' is not of the form http://host:port/v1"),
        (
            {"budget_usd": 1, "price": {"input": 1, "output": 1}, "max_tokens": None},
            "judges.x.budget_usd: an answer without a limit can cost anything; set judges.x.max_tokens",
        ),
        ({"template": "no-such"}, "judges.x: judge template 'no-such' is neither a built-in template nor a file"),
        (
            {"key_env": "NO_SUCH_KEY"},
            "judges.x: the environment variable NO_SUCH_KEY holds no key; "
            "set it (to any word if the server at judges.x.base_url asks for none)",
        ),
    ],
)
def test_a_judge_of_a_panel_is_told_by_its_own_section(refuses, options, told):
    message = refuses(judges={"x": {"kind": "openai", "model": "m", **options}}, judge={})
    assert message.startswith(f"error: {told}")


def test_an_integer_beyond_any_float(refuses):
    number = 400 * "9"
    assert "seeds must be a number that fits a float, got 99999999999999999999...\n" in refuses(f"seeds=[{number}]")
    assert "train.epochs must be a number that fits a float" in refuses(f"train.epochs={number}")
    assert "train.lr=" in refuses(f"train.lr={number}")
    assert "beta" in refuses(f"losses.dpo.beta={number}")
    assert "judge.margin" in refuses(f"judge.margin={number}")
