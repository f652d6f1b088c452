"""The controls that experiments/rpo_controls.yaml adds to RPO, against the losses that they become."""

import importlib.util

import pytest
import torch

from losses import PreferenceBatch, get_loss
from tests.conftest import REPOSITORY

FILE = REPOSITORY / "experiments" / "rpo_controls.py"


@pytest.fixture(scope="module")
def controls():
    """The plugin's module."""
    spec = importlib.util.spec_from_file_location("rpo_controls_under_test", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def batch() -> PreferenceBatch:
    torch.manual_seed(0)
    logps = [-20 + 3 * torch.randn(6, dtype=torch.float64) for _ in range(4)]
    return PreferenceBatch.from_logps(*logps, prompt_embeddings=torch.randn(6, 5, dtype=torch.float64))


def test_blocks_of_one_pair_are_dpo_and_one_block_is_rpo(controls, batch):
    settings = {"beta": 0.3, "temperature": 0.5}
    torch.testing.assert_close(controls.rpo_blocks(batch, **settings, size=1), get_loss("dpo")(batch, beta=0.3))
    whole = get_loss("rpo_paired")(batch, **settings)
    torch.testing.assert_close(controls.rpo_blocks(batch, **settings, size=6), whole)
    torch.testing.assert_close(controls.rpo_blocks(batch, **settings, size=64), whole)


def test_blocks_do_not_see_each_other(controls, batch):
    losses = controls.rpo_blocks(batch, beta=0.3, temperature=0.5, size=4)
    for rows in (slice(0, 4), slice(4, 6)):
        part = PreferenceBatch.from_logps(
            batch.chosen.policy[rows],
            batch.rejected.policy[rows],
            batch.chosen.reference[rows],
            batch.rejected.reference[rows],
            prompt_embeddings=batch.chosen.require("prompt_embeddings")[rows],
        )
        torch.testing.assert_close(losses[rows], get_loss("rpo_paired")(part, beta=0.3, temperature=0.5))


def test_without_the_diagonal_a_pair_is_weighed_against_the_others_alone(controls, batch):
    beta, temperature = 0.3, 0.5
    embeddings = torch.nn.functional.normalize(batch.chosen.require("prompt_embeddings"), dim=1)
    s_w, s_l = batch.chosen.logratio, batch.rejected.logratio
    expected = []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        scores = torch.stack([-(1 - embeddings[i] @ embeddings[j]) / temperature for j in others])
        deltas = torch.stack([s_w[i] - s_l[j] for j in others])
        expected.append(-torch.nn.functional.logsigmoid(beta * scores.softmax(0) * deltas).mean())
    torch.testing.assert_close(
        controls.rpo_off_diagonal(batch, beta=beta, temperature=temperature), torch.stack(expected)
    )


def test_in_a_batch_of_one_pair_there_is_no_other_contrast(controls, batch):
    one = PreferenceBatch.from_logps(
        *(
            side[:1]
            for side in (batch.chosen.policy, batch.rejected.policy, batch.chosen.reference, batch.rejected.reference)
        ),
        prompt_embeddings=batch.chosen.require("prompt_embeddings")[:1],
    )
    assert controls.rpo_off_diagonal(one, beta=0.3, temperature=0.5).tolist() == [0.0]
