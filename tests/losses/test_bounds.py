"""Bounds of hyper-parameters: declared in signatures, and held before anything is trained."""

from typing import Annotated

import pytest

from losses import Bounds, RegistryError, get_loss, list_losses, register_loss

BOUNDED = [(name, p) for name in list_losses() for p in get_loss(name).hyperparameters.values() if p.type is float]


@pytest.mark.parametrize(("name", "parameter"), BOUNDED, ids=lambda value: getattr(value, "name", value))
def test_every_number_of_a_built_in_loss_says_where_it_ends(name, parameter):
    """A negative beta, for example, trains away from what is chosen."""
    assert str(parameter.bounds), f"{name}: {parameter.name} has no bounds"
    assert all(value in parameter.bounds for value in (parameter.default, *parameter.grid))
    beyond = rf"loss '{name}': {parameter.name} must be a float (above|at least) .*, got -1.0"
    with pytest.raises(RegistryError, match=beyond):
        get_loss(name).settings({parameter.name: -1})


@pytest.mark.parametrize("value", [0, 0.0, -1, -0.1, float("nan"), float("inf"), 1e39, 10**400, True, "high", None])
def test_a_beta_that_no_run_could_use(value):
    with pytest.raises(RegistryError, match="loss 'dpo': beta must be ") as error:
        get_loss("dpo").settings({"beta": value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "told"),
    [
        (Bounds(above=0), [1e-9, 1e9], [0, -1], "above 0"),
        (Bounds(at_least=0, at_most=1), [0, 0.5, 1], [-0.1, 1.1], "at least 0 and at most 1"),
        (Bounds(at_least=0, below=0.5), [0, 0.49], [0.5], "at least 0 and below 0.5"),
        (Bounds(), [-1e30, 0, 1e30], [], ""),
    ],
)
def test_ends_are_open_or_closed(bounds, inside, outside, told):
    assert all(value in bounds for value in inside) and not any(value in bounds for value in outside)
    assert str(bounds) == told


def test_a_user_s_loss_declares_bounds_in_its_annotations():
    @register_loss("with_bounds", grid={"margin": [1.0, 2.0]})
    def with_bounds(
        batch, *, margin: Annotated[float, Bounds(at_least=0, below=10)] = 1.0, steps: Annotated[int, "a note"] = 1
    ):
        """Never called."""

    loss = get_loss("with_bounds")
    assert loss.settings({"margin": 9.5, "steps": -1}) == {"margin": 9.5, "steps": -1}
    with pytest.raises(RegistryError, match=r"margin must be a float at least 0 and below 10, got 10\.0"):
        loss.settings({"margin": 10})


def test_a_default_or_a_grid_out_of_bounds_is_no_loss():
    with pytest.raises(RegistryError, match=r"beta must be a float above 0, got 0\.0"):

        @register_loss("bad_default")
        def bad_default(batch, *, beta: Annotated[float, Bounds(above=0)] = 0.0):
            """Never registered."""

    with pytest.raises(RegistryError, match=r"beta must be a float above 0, got -1\.0"):

        @register_loss("bad_grid", grid={"beta": [0.1, -1.0]})
        def bad_grid(batch, *, beta: Annotated[float, Bounds(above=0)] = 0.1):
            """Never registered."""
