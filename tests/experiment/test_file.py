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
        (
            "seeds: [9223372036854775808]\n",
            r"seeds must be at least 0 and below 9\.22337e\+18, got 9223372036854775808",
        ),
        ("seeds: [18446744073709551616]\n", "seeds must be at least 0 and below"),
        ("sft: {seed: 9223372036854775813}\n", r"sft\.seed must be at least 0 and below"),
        ("seeds: [true]\n", "'True' of type 'bool' could not be converted to Integer"),
        ("train: {lr: true}\n", "'True' of type 'bool' could not be converted to Float"),
        ("train: {epochs: 1.5}\n", "'1.5' of type 'float' could not be converted to Integer"),
        ("seeds: ???\n", r"seeds is \?\?\?, which stands for a value that is missing"),
        ("judge: {kind: openai, model: '???'}\n", r"judge\.model is \?\?\?"),
        (f"seeds: [{5000 * '9'}]\n", "Exceeds the limit"),
        (f"seeds: [0x{6000 * 'f'}]\n", r"seeds\[0\] is an integer of thousands of digits"),
        (f"judge: {{x: 0x{6000 * 'f'}}}\n", r"judge\.x is an integer of thousands of digits"),
        ("train: {weight_decay: .inf}\n", r"train\.weight_decay must be a number at least 0, got inf"),
        ("sample: {temperature: .inf}\n", r"sample\.temperature must be at least 0 and at most 1000, got inf"),
        (f"name: {300 * 'a'}\n", "name 'a{100}' must be letters"),
        ("name: ..\n", r"name '\.\.' must be letters"),
        ('name: "a\\x1b[31m"\n', r"name 'a\\x1b\[31m' must be letters"),
        ('name: "a\\0"\n', "name holds a null byte"),
        ("name: Store\n", "the name 'Store' is taken"),
        ("name: a.partial\n", r"name 'a\.partial' may not end in \.partial"),
        (f"judges: {{{300 * 'a'}: {{}}}}\n", "name 'a{100}' must be letters"),
        ("judges: {a: {}, A: {}}\n", "judges: 'a' differs from another name in its case alone"),
        ("results: ''\n", "results='' names no folder"),
        ('results: "a\\nb"\n', r"results='a\\nb' names no folder"),
        (f"plugins: {3000 * '['}{3000 * ']'}\n", "not valid YAML: nested too deeply"),
        ("judge: &a {x: *a}\n", "recursive aliases"),
        ("model: {from_scratch: {hidden: 65536, layers: 65536}}\n", r"from_scratch would have 1\.1e\+15 weights"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(write, text, message):
    with pytest.raises(UserError, match=message) as error:
        load_experiment(write(MINIMAL + text))
    assert "\n" not in str(error.value)


def test_aliases_that_expand_to_more_than_memory_are_refused(write):
    doubled = "".join(f"  a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    with pytest.raises(UserError, match="expansion exceeds") as error:
        load_experiment(write(MINIMAL + f"judge:\n  a0: &a0 [x]\n{doubled}"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("judge: {kind: openai, extra: {user: '${oc.env:A_VARIABLE}'}}\n", r"judge\.extra\.user"),
        ("judge: {kind: openai, extra: {user: 'x ${oc.${word}:A_VARIABLE}'}}\n", r"judge\.extra\.user"),
        ("judges: {a: {stop: [x, '${oc.decode:${oc.env:A_VARIABLE}}']}}\n", r"judges\.a\.stop\[1\]"),
        ("name: ${oc.env:A_VARIABLE}\n", "name"),
    ],
)
def test_the_environment_is_not_read_into_settings(write, monkeypatch, text, place):
    """Every setting is written down, in the manifest and in artifacts."""
    monkeypatch.setenv("A_VARIABLE", "value-of-it")
    with pytest.raises(UserError, match=rf"{place} is .*not to the environment") as error:
        load_experiment(write(MINIMAL + text))
    assert "value-of-it" not in str(error.value)


def test_the_name_of_a_key_s_variable_may_come_from_the_environment(write, monkeypatch):
    monkeypatch.setenv("WHICH_ONE", "OPENAI_API_KEY")
    experiment = load_experiment(write(MINIMAL + "judge: {kind: openai, key_env: '${oc.env:WHICH_ONE}'}\n"))
    assert experiment.judge["key_env"] == "OPENAI_API_KEY"


def test_a_setting_may_refer_to_another(write):
    experiment = load_experiment(write(MINIMAL + "sft: {lr: 1e-3}\ntrain: {lr: '${sft.lr}'}\n"))
    assert experiment.train.lr == 1e-3


@pytest.mark.parametrize(
    "text",
    [
        "judge: {kind: openai, extra: {user: sk-0123456789}}\n",
        "judge: {kind: openai, extra: {sk-0123456789: x}}\n",
        "judge: {kind: openai, key_env: '${oc.env:A_KEY}', extra: {user: '${judge.key_env}'}}\n",
        "judges: {a: {base_url: 'http://host/v1?key=sk-0123456789'}}\n",
        "judge: {kind: gold, reward: sk-0123456789}\n",
    ],
)
def test_a_secret_among_the_settings_is_refused_and_not_shown(write, monkeypatch, text):
    monkeypatch.setenv("A_KEY", "sk-0123456789")
    with pytest.raises(UserError, match=r"holds the value of \$A_KEY") as error:
        load_experiment(write(MINIMAL + text))
    assert "sk-0123456789" not in str(error.value)


def test_a_home_folder_is_meant_wherever_a_string_begins_with_it(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    text = "results: ~/out\nplugins: [~/p.py]\nmodel: {name: ~/m}\njudge: {kind: gold, reward: ~/r}\n"
    experiment = load_experiment(write(MINIMAL + text), ["encoder=~/e", "tasks.hh.data=~/d.jsonl"])
    assert (experiment.results, experiment.plugins) == ("/home/somebody/out", ["/home/somebody/p.py"])
    assert (experiment.model.name, experiment.encoder) == ("/home/somebody/m", "/home/somebody/e")
    assert experiment.judge["reward"] == "/home/somebody/r"
    assert experiment.tasks["hh"].data == "/home/somebody/d.jsonl"


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
        ("seeds=???", r"override 'seeds=\?\?\?': seeds is \?\?\?"),
        ("name=${oc.env:HOME}", "not to the environment"),
        (f"seeds=[{5000 * '9'}]", "override 'seeds=.{94}': Exceeds the limit"),
        (f"judge.{'a.' * 500}b=1", "nested too deeply"),
        (f"name={3000 * '['}", "override 'name=.{95}': "),
    ],
)
def test_a_wrong_override_is_named(write, override, message):
    with pytest.raises(UserError, match=message) as error:
        load_experiment(write(MINIMAL), [override])
    assert "\n" not in str(error.value)
