"""The registry: what it accepts, what it refuses, and what it says then."""

import pytest
import torch

from losses import PreferenceBatch, RegistryError, get_loss, list_losses, register_loss
from losses.registry import Registry


def test_the_losses_of_the_papers_comparison_are_registered():
    wanted = {"dpo", "ipo", "ipo_sum", "rpo_paired", "rpo_unpaired", "rpo_uniform", "rpo_diagonal"}
    assert wanted <= set(list_losses())


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(RegistryError, match=r"unknown loss 'rpo_pared'; did you mean 'rpo_paired'\?"):
        get_loss("rpo_pared")


def test_an_unknown_hyperparameter_suggests_the_nearest():
    batch = PreferenceBatch.from_logps(*[torch.zeros(2)] * 4)
    with pytest.raises(RegistryError, match=r"loss 'dpo' has no hyper-parameter 'betta'; did you mean 'beta'\?"):
        get_loss("dpo")(batch, betta=0.1)


@pytest.mark.parametrize("value", ["0.1", True, None, float("nan"), float("inf")])
def test_a_hyperparameter_of_the_wrong_type_is_refused(value):
    with pytest.raises(RegistryError, match="beta must be a float"):
        get_loss("dpo").settings({"beta": value})


def test_an_integer_serves_as_a_float():
    assert get_loss("dpo").settings({"beta": 1}) == {"beta": 1.0}


def test_two_registrations_under_one_name_name_both_places():
    @register_loss("twice")
    def first(batch, *, beta: float = 0.1):
        """First."""

    with pytest.raises(RegistryError) as error:

        @register_loss("twice")
        def second(batch, *, beta: float = 0.1):
            """Second."""

    assert f"{__file__}:{first.__code__.co_firstlineno}" in str(error.value)
    assert str(error.value).count(__file__) == 2


def test_a_listwise_loss_has_no_values_of_tokens():
    with pytest.raises(RegistryError, match="token_values are of chosen and rejected responses"):

        @register_loss("listed", data="listwise", needs=["token_values"])
        def listed(batch, *, beta: float = 0.1):
            """Listed."""


def test_registering_the_same_function_again_replaces_it():
    for default in (0.1, 0.2):

        @register_loss("again")
        def loss(batch, *, beta: float = default):
            """A cell of a notebook, run twice."""

    assert get_loss("again").settings() == {"beta": 0.2}


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        ({"data": "pairs"}, "data is 'pairs'; did you mean 'paired'"),
        ({"needs": ["referenc"]}, "needs is 'referenc'; did you mean 'reference'"),
        ({"reduction": "average"}, "reduction is 'average'"),
        ({"grid": {"betta": [1.0]}}, "the grid names 'betta', which is no argument; did you mean 'beta'"),
        ({"grid": {"beta": ["large"]}}, "beta must be a float, got 'large'"),
        ({"choices": {"bta": ("a",)}}, "the choices name 'bta', which is no argument; did you mean 'beta'"),
    ],
)
def test_a_declaration_that_does_not_hold_is_refused(declaration, message):
    with pytest.raises(RegistryError, match=message):

        @register_loss("wrong", **declaration)
        def loss(batch, *, beta: float = 0.1):
            """Never registered."""

    assert "wrong" not in list_losses()


def test_hyperparameters_are_keyword_only_with_defaults():
    with pytest.raises(RegistryError, match="'beta' must be keyword-only"):

        @register_loss("positional")
        def positional(batch, beta: float = 0.1):
            """Never registered."""

    with pytest.raises(RegistryError, match="have a default"):

        @register_loss("no_default")
        def no_default(batch, *, beta: float):
            """Never registered."""


def test_the_default_grid_is_the_product_of_the_declared_values():
    grid = get_loss("rpo_paired").grid()
    assert len(grid) == 4 * 3
    assert {"beta": 0.01, "temperature": 0.75} in grid


def test_a_choice_is_one_of_those_declared():
    @register_loss("choosy", grid={"kind": ["a"]}, choices={"kind": ("a", "bee")})
    def choosy(batch, *, kind: str = "a"):
        """Never called."""

    assert get_loss("choosy").settings({"kind": "bee"}) == {"kind": "bee"}
    with pytest.raises(RegistryError, match="loss 'choosy': unknown kind 'be'; did you mean 'bee'"):
        get_loss("choosy").settings({"kind": "be"})


def test_registries_of_other_kinds_speak_of_their_kind():
    tasks: Registry[int] = Registry("task")
    tasks.add("hh", 1, "here:1")
    with pytest.raises(RegistryError, match="unknown task 'h'"):
        tasks.get("h")
