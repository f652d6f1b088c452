"""The RPO family: by hand, by brute force in fp64, in the limits that theory gives, and its weightings."""

import math

import pytest
import torch

from losses import PreferenceBatch, RegistryError, get_loss, register_weighting
from losses.rpo import WEIGHTINGS, embedding_weights
from tests.losses.by_hand import nll

M, N, D = 5, 7, 16


def random_batch(m=M, n=None, seed=0, dtype=torch.float32, scale=3.0) -> PreferenceBatch:
    n = m if n is None else n
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return scale * torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    if m == n:
        embeddings = {"prompt_embeddings": normal(m, D)}
    else:
        embeddings = {"chosen_prompt_embeddings": normal(m, D), "rejected_prompt_embeddings": normal(n, D)}
    return PreferenceBatch.from_logps(
        normal(m) - 40,
        normal(n) - 40,
        normal(m) - 40,
        normal(n) - 40,
        chosen_tokens=torch.randint(1, 30, (m,), generator=g),
        rejected_tokens=torch.randint(1, 30, (n,), generator=g),
        **embeddings,
    )


def log_ratios(batch) -> tuple[list[float], list[float]]:
    return batch.chosen.logratio.double().tolist(), batch.rejected.logratio.double().tolist()


def brute_weights(batch, temperature) -> list[list[float]]:
    """softmax over j of -(1 - cos(i, j)) / temperature, one number at a time."""
    rows = []
    for e in batch.chosen.require("prompt_embeddings").double().tolist():
        distances = []
        for f in batch.rejected.require("prompt_embeddings").double().tolist():
            dot = sum(a * b for a, b in zip(e, f, strict=True))
            norms = math.sqrt(sum(a * a for a in e)) * math.sqrt(sum(b * b for b in f))
            distances.append(1 - dot / norms)
        powers = [math.exp(-d / temperature) for d in distances]
        rows.append([p / sum(powers) for p in powers])
    return rows


def test_rpo_paired_by_hand():
    """Two pairs with orthogonal prompts at temperature 0.5: distances 0 and 1, so W_ii = 1 / (1 + e^-2) = 0.880797.

    s_w = (2, 0), s_l = (-1, 1): Delta = [[3, 1], [1, -1]]. Row 0 at beta 0.1:
    mean(-log sigma(0.1 * 0.880797 * 3), -log sigma(0.1 * 0.119203 * 1)) = (0.569728 + 0.687205) / 2 = 0.628466.
    """
    zeros = torch.zeros(2)
    batch = PreferenceBatch.from_logps(
        torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 1.0]), zeros, zeros, prompt_embeddings=torch.eye(2)
    )
    own, other = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))
    expected = [
        (nll(0.1 * own * 3) + nll(0.1 * other * 1)) / 2,
        (nll(0.1 * other * 1) + nll(0.1 * own * -1)) / 2,
    ]
    assert expected[0] == pytest.approx(0.628466, abs=1e-5)
    assert get_loss("rpo_paired")(batch, beta=0.1, temperature=0.5).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("name", "m", "n"), [("rpo_paired", M, M), ("rpo_unpaired", M, N), ("rpo_unpaired", N, M)])
@pytest.mark.parametrize("temperature", [0.25, 0.5, 0.75])
def test_rpo_with_embeddings_equals_a_brute_force_loop(name, m, n, temperature):
    batch = random_batch(m, n)
    s_w, s_l = log_ratios(batch)
    weights = brute_weights(batch, temperature)
    expected = [sum(nll(0.1 * weights[i][j] * (s_w[i] - s_l[j])) for j in range(n)) / n for i in range(m)]
    assert get_loss(name)(batch, beta=0.1, temperature=temperature).tolist() == pytest.approx(expected, abs=1e-6)


def test_rpo_uniform_equals_a_brute_force_loop_with_weight_one():
    batch = random_batch()
    s_w, s_l = log_ratios(batch)
    expected = [sum(nll(0.1 * (w - x)) for x in s_l) / M for w in s_w]
    assert get_loss("rpo_uniform")(batch, beta=0.1).tolist() == pytest.approx(expected, abs=1e-6)


def test_rpo_diagonal_weights_losses_not_logits():
    batch = random_batch()
    s_w, s_l = log_ratios(batch)
    expected = [
        0.8 * nll(0.1 * (s_w[i] - s_l[i]))
        + 0.2 * sum(nll(0.1 * (s_w[i] - s_l[j])) for j in range(M) if j != i) / (M - 1)
        for i in range(M)
    ]
    assert get_loss("rpo_diagonal")(batch, beta=0.1, diagonal_weight=0.8).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["rpo_paired", "rpo_unpaired", "rpo_uniform", "rpo_diagonal", "rpo"])
def test_a_contrast_of_one_pair_is_dpo(name):
    batch = random_batch(1)
    assert get_loss(name)(batch, beta=0.3).item() == pytest.approx(get_loss("dpo")(batch, beta=0.3).item(), abs=1e-6)


def test_rpo_at_temperature_towards_zero_has_the_gradient_of_dpo_over_m():
    batch = random_batch(dtype=torch.float64)
    gradients = {}
    for name, options in (("rpo_paired", {"temperature": 1e-4}), ("dpo", {})):
        policy = batch.chosen.policy.clone().requires_grad_()
        get_loss(name)(batch.with_policy(policy, batch.rejected.policy), beta=0.1, **options).sum().backward()
        gradients[name] = policy.grad
    torch.testing.assert_close(gradients["rpo_paired"], gradients["dpo"] / M)


def test_rpo_at_temperature_towards_infinity_weighs_all_contrasts_alike():
    batch = random_batch(dtype=torch.float64)
    expected = get_loss("rpo_uniform")(batch, beta=0.1 / M)  # W = 1/M inside the sigmoid is beta / M
    torch.testing.assert_close(get_loss("rpo_paired")(batch, beta=0.1, temperature=1e9), expected)


def test_duplicate_prompts_share_the_weight_of_the_diagonal():
    """Two equal prompts and an orthogonal one: the first row's weights are a, a, b with b = a * e^-2."""
    prompts = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    a = 1 / (2 + math.exp(-2))
    assert embedding_weights(prompts, prompts, 0.5)[0].tolist() == pytest.approx([a, a, a * math.exp(-2)], abs=1e-6)


def test_the_weights_do_not_depend_on_the_norm_of_the_embeddings():
    batch = random_batch()
    longer = PreferenceBatch.from_logps(
        batch.chosen.policy,
        batch.rejected.policy,
        batch.chosen.reference,
        batch.rejected.reference,
        prompt_embeddings=batch.chosen.require("prompt_embeddings") * 100,
    )
    torch.testing.assert_close(get_loss("rpo_paired")(batch), get_loss("rpo_paired")(longer))


def test_an_absent_class_is_an_error_and_not_a_silent_constant():
    batch = random_batch(M, N)
    empty = PreferenceBatch.from_logps(
        batch.chosen.policy,
        torch.zeros(0),
        batch.chosen.reference,
        torch.zeros(0),
        chosen_prompt_embeddings=batch.chosen.require("prompt_embeddings"),
        rejected_prompt_embeddings=torch.zeros(0, D),
    )
    with pytest.raises(ValueError, match="one of the two classes is absent"):
        get_loss("rpo_unpaired")(empty)


@pytest.mark.parametrize(
    ("weighting", "name"), [("embedding", "rpo_paired"), ("uniform", "rpo_uniform"), ("diagonal", "rpo_diagonal")]
)
def test_the_named_variants_are_values_of_one_argument(weighting, name):
    batch = random_batch()
    torch.testing.assert_close(get_loss("rpo")(batch, weighting=weighting), get_loss(name)(batch))


def test_rpo_of_uniform_mean_is_uniform_rpo_at_beta_over_m():
    batch = random_batch()
    expected = get_loss("rpo_uniform")(batch, beta=0.1 / M)
    torch.testing.assert_close(get_loss("rpo")(batch, weighting="uniform_mean", beta=0.1), expected)


def test_permuted_embeddings_keep_the_diagonal_and_the_set_of_weights():
    """Pair i takes the embedding of the pair before it: W'[i, j] = W[i - 1, j - 1]; W'[i, i] is still the largest."""
    batch = random_batch()
    own, permuted = (WEIGHTINGS.get(name).weights(batch, 0.5) for name in ("embedding", "permuted_embedding"))
    torch.testing.assert_close(permuted, own.roll((1, 1), dims=(0, 1)))
    assert not torch.allclose(permuted, own)
    assert (permuted.argmax(dim=1) == torch.arange(M)).all()


def test_a_weighting_of_the_user_s_own_is_a_value_like_any_other():
    @register_weighting("nearest_only")
    def nearest_only(batch, temperature):
        return torch.eye(len(batch.chosen))

    batch = random_batch()
    expected = (get_loss("dpo")(batch) + (M - 1) * torch.full((M,), math.log(2))) / M
    torch.testing.assert_close(get_loss("rpo")(batch, weighting="nearest_only"), expected)


def test_an_unknown_weighting_is_found_before_anything_runs():
    with pytest.raises(RegistryError, match="loss 'rpo': unknown weighting 'embeding'; did you mean 'embedding'"):
        get_loss("rpo").settings({"weighting": "embeding"})
    with pytest.raises(RegistryError, match="of is 'logit'; it must be one of logits, losses"):
        register_weighting("wrong", of="logit")
