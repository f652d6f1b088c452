"""Dials: the bounds of every dial of an experiment, and what dials contribute to keys."""

import re
from dataclasses import fields, is_dataclass, make_dataclass

import pytest

from harness.core import config
from harness.core.dials import Dial, dial, numeric, out_of_bounds
from harness.core.store import key_of

OPTIM = {"lr": 5e-7, "optimizer": "rmsprop", "weight_decay": 0.0, "schedule": "constant", "warmup_steps": 0}
OPTIM |= {"clip": 10.0, "epochs": 1, "batch_size": 64}
SLOW = {"lr": 3e-3, "optimizer": "adamw", "weight_decay": 0.01, "schedule": "cosine", "warmup_steps": 100, "clip": 1.0}
SECTIONS = [
    section for section in vars(config).values() if is_dataclass(section) and section.__module__ == config.__name__
]


@pytest.mark.parametrize(
    ("section", "part"),
    [
        (config.SftConfig(), {**OPTIM, "seed": 0}),
        (config.TrainConfig(), {**OPTIM, "eval_every": 0, "keep_at": []}),
        (config.PretrainConfig(), {**OPTIM, **SLOW, "batch_size": 8, "seed": 0}),
        (config.SampleConfig(), {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 256, "engine": "hf"}),
        (config.LoraConfig(), {"rank": 16, "alpha": 32.0, "dropout": 0.0, "targets": "all-linear"}),
        (
            config.FromScratchConfig(),
            {"vocabulary": 4096, "hidden": 192, "layers": 4, "heads": 4, "feed_forward": 512, "context": 256},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_part_of_a_key_that_a_section_makes_stays_what_it_was(section, part):
    """A changed part changes the key, and everything that users have computed would be computed again."""
    assert numeric(section) == part
    assert key_of(numeric(section)) == key_of(part)  # 1 and 1.0 are equal, but differ in a key


def experiment_with_everything() -> config.ExperimentConfig:
    """An experiment with every section present."""
    task = config.TaskConfig(generate=config.GenerateConfig())
    model = config.ModelConfig(from_scratch=config.FromScratchConfig())
    return config.ExperimentConfig(tasks={"hh": task}, model=model)


def dials_of(section: object, prefix: str = ""):
    """Yield each section, the key of each of its fields with bounds, and the field."""
    for declared in fields(section):
        inner = getattr(section, declared.name)
        children = inner.items() if isinstance(inner, dict) else [("", inner)]
        for name, child in children:
            if is_dataclass(child):
                yield from dials_of(child, f"{prefix}{declared.name}.{f'{name}.' if name else ''}")
        if Dial.of(declared).bounds:
            yield section, f"{prefix}{declared.name}", declared


KEYS = [key for _, key, _ in dials_of(experiment_with_everything())]


def test_the_defaults_are_within_their_bounds():
    assert list(out_of_bounds(experiment_with_everything())) == []
    assert {f"{part}.lr" for part in ("sft", "train", "model.from_scratch.pretrain")} <= set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_every_bound_is_checked_wherever_its_section_stands(key):
    experiment = experiment_with_everything()
    section, _, declared = next(entry for entry in dials_of(experiment) if entry[1] == key)
    default, bounds = getattr(section, declared.name), Dial.of(declared).bounds
    for bound, limit in bounds.items():
        outside = {"above": limit, "at_least": limit - 1, "below": limit, "at_most": limit + 1}[bound]
        setattr(section, declared.name, [outside] if isinstance(default, list) else outside)
        (problem,) = out_of_bounds(experiment)
        assert problem.startswith(f"{key} must be ") and problem.endswith(f"got {outside}")
        assert f"{bound.replace('_', ' ')} {limit:g}" in problem


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("train.lr", "a number above 0"),
        ("train.weight_decay", "a number at least 0"),
        ("sample.top_p", "above 0 and at most 1"),
        ("tasks.hh.generate.threshold", "a number"),
    ],
)
def test_a_dial_is_a_finite_number(key, wanted, value):
    experiment = experiment_with_everything()
    *path, name = key.split(".")
    section = experiment
    for part in path:
        section = section[part] if isinstance(section, dict) else getattr(section, part)
    setattr(section, name, value)
    assert list(out_of_bounds(experiment)) == [f"{key} must be {wanted}, got {value}"]


@pytest.mark.parametrize(
    "value", [2**63, -(2**63), 10**30, 10**400, 2**20_000], ids=lambda value: f"{value.bit_length()} bits"
)
@pytest.mark.parametrize("bounds", [{}, {"at_least": 0}, {"above": 0, "at_most": 2**31 - 1}])
def test_no_dial_takes_an_integer_beyond_64_bits(bounds, value):
    problem = Dial.of(next(iter(fields(declared(0, **bounds))))).problem(value)
    assert problem.startswith(" must be ") and "\n" not in problem


def declared(default, **bounds):
    """A dataclass of one dial."""
    return make_dataclass("Declared", [("value", type(default), dial(default, **bounds))])


@pytest.mark.parametrize("value", [1e39, -1e39, 1e300])
def test_no_dial_takes_a_number_beyond_float32(value):
    assert Dial({}, True, None).problem(value) == f" must be a number, got {value}"


def test_a_far_bound_is_told_only_to_who_crosses_it():
    count = Dial({"at_least": 1, "at_most": 2**31 - 1}, True, None)
    assert count.problem(0) == " must be at least 1, got 0"
    assert count.problem(2**31) == " must be at least 1 and at most 2.14748e+09, got 2147483648"


INTEGERS = [(s, f) for s in SECTIONS for f in fields(s) if re.search(r"\bint\b", f.type)]


@pytest.mark.parametrize(("section", "declared"), INTEGERS, ids=lambda value: getattr(value, "name", None))
def test_every_integer_states_both_of_its_bounds(section, declared):
    """A count or a size beyond what libraries take would fail, or hang, long after a run began."""
    bounds = Dial.of(declared).bounds
    assert {"at_least", "above"} & bounds.keys() and {"at_most", "below"} & bounds.keys()


def test_a_list_is_checked_element_by_element():
    train = config.TrainConfig(keep_at=[0.5, 1.0, 0.0])
    assert list(out_of_bounds(train, "train.")) == [
        "train.keep_at must be above 0 and below 1, got 1.0",
        "train.keep_at must be above 0 and below 1, got 0.0",
    ]


def test_every_float_is_a_dial():
    """A float declared without `dial` would accept infinity and NaN."""
    floats = [(s, f) for s in SECTIONS for f in fields(s) if re.search(r"\bfloat\b", f.type)]
    assert floats and [f"{s.__name__}.{f.name}" for s, f in floats if not f.metadata] == []


def test_a_bound_that_there_is_none_of_is_refused():
    with pytest.raises(TypeError, match="no bound 'atleast'; there are above, at_least, below, at_most"):
        dial(1, atleast=1)


def test_each_list_has_a_default_of_its_own():
    first, second = config.TrainConfig(), config.TrainConfig()
    first.keep_at.append(0.5)
    assert second.keep_at == []
