"""PreferenceBatch: what it takes, what it gives, what it refuses."""

import pytest
import torch

from losses import MissingData, PreferenceBatch, get_loss


def batch(n=3, m=None, **fields):
    m = n if m is None else m
    return PreferenceBatch.from_logps(torch.zeros(n), torch.zeros(m), torch.ones(n), torch.ones(m), **fields)


def test_log_ratios_are_policy_minus_reference():
    view = PreferenceBatch.from_logps(
        torch.tensor([-1.0]), torch.tensor([-2.0]), torch.tensor([-4.0]), torch.tensor([-3.0])
    )
    assert view.chosen.logratio.tolist() == [3.0]
    assert view.rejected.logratio.tolist() == [1.0]
    assert view.logratio_margin.tolist() == [2.0]


def test_means_are_per_token_and_an_empty_completion_is_not_a_nan():
    view = PreferenceBatch.from_logps(
        torch.tensor([-6.0, 0.0]),
        torch.zeros(2),
        torch.zeros(2),
        torch.zeros(2),
        chosen_tokens=torch.tensor([3, 0]),
        rejected_tokens=torch.tensor([1, 1]),
    )
    assert view.chosen.mean_policy.tolist() == [-2.0, 0.0]


def test_the_sides_of_unpaired_data_may_differ_in_length():
    view = batch(3, 5, chosen_prompt_embeddings=torch.randn(3, 4), rejected_prompt_embeddings=torch.randn(5, 4))
    assert get_loss("rpo_unpaired")(view).shape == (3,)
    with pytest.raises(ValueError, match="3 chosen and 5 rejected do not pair up"):
        get_loss("dpo")(view)


def test_what_is_missing_is_named():
    with pytest.raises(MissingData, match="needs reference for the chosen side"):
        get_loss("dpo")(PreferenceBatch.from_logps(torch.zeros(2), torch.zeros(2)))
    with pytest.raises(MissingData, match="prompt embeddings"):
        get_loss("rpo_paired")(batch())
    with pytest.raises(MissingData, match="tokens"):
        get_loss("ipo")(batch())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chosen_tokens": torch.ones(2)}, "tokens of the chosen side must be 1-D with 3 rows"),
        ({"prompt_embeddings": torch.ones(3)}, "must be 2-D with 3 rows"),
        ({"rejected_scores": torch.ones(3, 1)}, "scores of the rejected side must be 1-D"),
        (
            {"prompt_embeddings": torch.ones(3, 2), "chosen_prompt_embeddings": torch.ones(3, 2)},
            "either prompt_embeddings",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        batch(**fields)


def test_a_matrix_of_token_log_probs_is_refused():
    with pytest.raises(ValueError, match="one summed log-prob per completion"):
        PreferenceBatch.from_logps(torch.zeros(2, 5), torch.zeros(2))


def test_half_precision_is_brought_to_fp32_and_fp64_is_kept():
    assert PreferenceBatch.from_logps(*[torch.zeros(2, dtype=torch.bfloat16)] * 2).chosen.policy.dtype == torch.float32
    assert PreferenceBatch.from_logps(*[torch.zeros(2, dtype=torch.float64)] * 2).chosen.policy.dtype == torch.float64


def test_gradients_flow_to_the_policy_alone():
    policy = torch.zeros(3, requires_grad=True)
    view = batch().with_policy(policy, torch.zeros(3))
    get_loss("dpo")(view).sum().backward()
    assert (policy.grad < 0).all()
