"""Experiment files: defaults, overrides, and one clear line for each thing that can be wrong in them."""

from pathlib import Path

import pytest

from harness.core.errors import UserError
from harness.experiment.file import load_experiment
from harness.training.preference import kept_folder

MINIMAL = "tasks: {hh: {}}\nlosses: {dpo: {}}\n"


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "example.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_the_name_is_the_file_s_and_the_rest_has_defaults(write):
    experiment = load_experiment(write(MINIMAL))
    assert experiment.name == "example"
    assert str(experiment.folder) == "results/example"
    assert experiment.model.name == "smollm2-135m-instruct"
    assert experiment.judge == {"kind": "preference_model"}
    assert experiment.train.batch_size == 64


def test_shares_that_differ_are_kept_apart(write):
    shares = [0.5, 0.500001, 0.05]
    assert load_experiment(write(MINIMAL + f"train: {{keep_at: {shares}}}\n")).train.keep_at == shares
    assert len({kept_folder(Path(), share) for share in shares}) == 3


def test_overrides_in_dotted_form_go_before_the_file(write):
    experiment = load_experiment(
        write(MINIMAL + "train: {lr: 1e-6}\n"), ["train.lr=1e-5", "seeds=[0,1]", "tasks.hh.train_pairs=8"]
    )
    assert experiment.train.lr == 1e-5
    assert experiment.seeds == [0, 1]
    assert experiment.tasks["hh"].train_pairs == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sedes: [1]\n", r"example\.yaml: unknown key 'sedes'; did you mean 'seeds'\?"),
        ("train: {learning_rate: 1}\n", r"unknown key 'train\.learning_rate'; known here: lr, "),
        ("train: {epoch: 1}\n", r"unknown key 'train\.epoch'; did you mean 'epochs'\?"),
        ("train: {lr: fast}\n", r"train\.lr: Value 'fast' of type 'str' could not be converted to Float"),
        (
            "model: {tune: some}\n",
            r"model\.tune: Invalid value 'some', expected one of \['full', 'lora', 'last_layers'\]",
        ),
        ("seeds: 3\n", "seeds: "),
        ("seeds: [1, 1]\n", "seeds holds a seed twice"),
        ("train: {keep_at: [0.25, 0.5, 0.5]}\n", r"train\.keep_at holds the share 0\.5 twice: \[0\.25, 0\.5, 0\.5\]"),
        (
            "train: {keep_at: [0.3333333, 0.33333334]}\n",
            r"train\.keep_at holds the share 0\.333333 twice: .*six digits",
        ),
        ("name: a/b\n", "name 'a/b' must be letters"),
        ("name: store\n", "the name 'store' is taken"),
        ("sample: {top_p: 0}\n", r"sample\.top_p must be above 0 and at most 1, got 0\.0"),
        ("sample: {max_new_tokens: 0}\n", r"sample\.max_new_tokens must be at least 1, got 0"),
        ("train: {batch_size: 0}\n", r"train\.batch_size must be at least 1"),
        ("train: {epochs: 0}\n", r"train\.epochs must be at least 1"),
        ("train: {lr: .nan}\n", r"train\.lr must be a number above 0"),
        ("train: {clip: 0}\n", r"train\.clip must be a number above 0"),
        ("seeds: [-1]\n", "seeds must be at least 0"),
        ("model: {lora: {dropout: 1.0}}\n", r"model\.lora\.dropout must be below 1"),
        ("name: ${foo\n", r"example\.yaml"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(write, text, message):
    with pytest.raises(UserError, match=message) as error:
        load_experiment(write(MINIMAL + text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: {hh: {}\nlosses:\n", r"example\.yaml:\d+: not valid YAML"),
        ("- a\n- b\n", "is a mapping of keys"),
        ("losses: {dpo: {}}\n", "'tasks' is empty"),
        ("tasks: {hh: {}}\n", "'losses' is empty"),
        (
            "tasks: {hh: {train_pair: 3}}\nlosses: {dpo: }\n",
            r"unknown key 'tasks\.hh\.train_pair'; did you mean 'train_pairs'",
        ),
        ("tasks: [hh]\nlosses: {dpo: }\n", "the wrong kind of value"),
        ("", "is empty"),
    ],
)
def test_a_file_that_is_no_experiment_is_refused(write, text, message):
    with pytest.raises(UserError, match=message) as error:
        load_experiment(write(text))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no experiment file at .*nowhere\.yaml"):
        load_experiment(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", "is not of the form key.path=value"),
        ("train.rl=1", r"override 'train\.rl=1': unknown key 'train\.rl'; did you mean 'lr'"),
        ("train.lr=x", "could not be converted to Float"),
    ],
)
def test_a_wrong_override_is_named(write, override, message):
    with pytest.raises(UserError, match=message):
        load_experiment(write(MINIMAL), [override])
