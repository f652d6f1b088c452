"""Values of the losses: by hand, by brute force in fp64, at their start, and in the limits that theory gives."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losses import PreferenceBatch, get_loss, list_losses

M, N, D = 5, 7, 16


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def nll(x: float) -> float:
    """-log sigmoid(x), stable for both signs."""
    return math.log1p(math.exp(-x)) if x >= 0 else -x + math.log1p(math.exp(x))


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
    for e in batch.chosen.prompt_embeddings.double().tolist():
        distances = []
        for f in batch.rejected.prompt_embeddings.double().tolist():
            dot = sum(a * b for a, b in zip(e, f, strict=True))
            norms = math.sqrt(sum(a * a for a in e)) * math.sqrt(sum(b * b for b in f))
            distances.append(1 - dot / norms)
        powers = [math.exp(-d / temperature) for d in distances]
        rows.append([p / sum(powers) for p in powers])
    return rows


def test_dpo_by_hand():
    """s_w = -10 - -12 = 2, s_l = -11 - -10 = -1, Delta = 3; beta 0.1: -log sigma(0.3) = log(1 + e^-0.3) = 0.554355."""
    batch = PreferenceBatch.from_logps(*(torch.tensor([x]) for x in (-10.0, -11.0, -12.0, -10.0)))
    assert get_loss("dpo")(batch, beta=0.1).item() == pytest.approx(0.5543552, abs=1e-6)


def test_ipo_by_hand():
    """s_w/|y_w| = 2/4 = 0.5, s_l/|y_l| = -1/2 = -0.5, h = 1; tau 0.5: target 1, loss 0. tau 0.1: (1 - 5)^2 = 16."""
    batch = PreferenceBatch.from_logps(
        *(torch.tensor([x]) for x in (-10.0, -11.0, -12.0, -10.0)),
        chosen_tokens=torch.tensor([4]),
        rejected_tokens=torch.tensor([2]),
    )
    assert get_loss("ipo")(batch, tau=0.5).item() == pytest.approx(0.0, abs=1e-6)
    assert get_loss("ipo")(batch, tau=0.1).item() == pytest.approx(16.0, abs=1e-5)


def test_ipo_sum_by_hand():
    """Delta = 3 as for DPO; tau 0.1: (3 - 5)^2 = 4."""
    batch = PreferenceBatch.from_logps(*(torch.tensor([x]) for x in (-10.0, -11.0, -12.0, -10.0)))
    assert get_loss("ipo_sum")(batch, tau=0.1).item() == pytest.approx(4.0, abs=1e-5)


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


@pytest.mark.parametrize("name", list_losses())
def test_the_start_value_is_the_loss_at_policy_equal_to_reference(name):
    loss = get_loss(name)
    batch = random_batch()
    batch = batch.with_policy(batch.chosen.reference, batch.rejected.reference)
    for point in loss.grid():
        assert loss(batch, **point).tolist() == pytest.approx([loss.start(point)] * M, rel=1e-6)


@pytest.mark.parametrize("name", [n for n in list_losses() if n.startswith("rpo")])
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
    from losses.rpo import embedding_weights

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
        prompt_embeddings=batch.chosen.prompt_embeddings * 100,
    )
    torch.testing.assert_close(get_loss("rpo_paired")(batch), get_loss("rpo_paired")(longer))


def test_an_absent_class_is_an_error_and_not_a_silent_constant():
    batch = random_batch(M, N)
    empty = PreferenceBatch.from_logps(
        batch.chosen.policy,
        torch.zeros(0),
        batch.chosen.reference,
        torch.zeros(0),
        chosen_prompt_embeddings=batch.chosen.prompt_embeddings,
        rejected_prompt_embeddings=torch.zeros(0, D),
    )
    with pytest.raises(ValueError, match="one of the two classes is absent"):
        get_loss("rpo_unpaired")(empty)


@pytest.mark.parametrize("name", list_losses())
@pytest.mark.parametrize("ratio", [1e4, -1e4])
def test_values_and_gradients_are_finite_at_extreme_log_ratios(name, ratio):
    batch = random_batch()
    policy = (batch.chosen.reference + ratio).requires_grad_()
    rows = get_loss(name)(batch.with_policy(policy, batch.rejected.reference))
    rows.sum().backward()
    assert rows.isfinite().all() and policy.grad.isfinite().all()


@pytest.mark.parametrize("name", list_losses())
def test_gradients_agree_with_finite_differences(name):
    batch = random_batch(dtype=torch.float64)

    def total(chosen, rejected):
        return get_loss(name)(batch.with_policy(chosen, rejected)).sum()

    inputs = (batch.chosen.policy.requires_grad_(), batch.rejected.policy.requires_grad_())
    assert torch.autograd.gradcheck(total, inputs)


@pytest.mark.parametrize("name", list_losses())
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), m=st.integers(1, 9))
def test_the_order_of_the_pairs_does_not_matter(name, seed, m):
    batch = random_batch(m, seed=seed)
    order = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
    fields = ("policy", "reference", "tokens")
    sides = [[getattr(side, f)[order] for f in fields] for side in (batch.chosen, batch.rejected)]
    shuffled = PreferenceBatch.from_logps(
        sides[0][0],
        sides[1][0],
        sides[0][1],
        sides[1][1],
        chosen_tokens=sides[0][2],
        rejected_tokens=sides[1][2],
        prompt_embeddings=batch.chosen.prompt_embeddings[order],
    )
    loss = get_loss(name)
    torch.testing.assert_close(loss(shuffled), loss(batch)[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list_losses())
def test_couples_examples_is_declared_rightly(name):
    """Changing the second pair changes the first row exactly when the loss says that it couples examples."""
    loss, batch = get_loss(name), random_batch()
    nudge = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    moved = loss(batch.with_policy(batch.chosen.policy, batch.rejected.policy + nudge))
    assert (moved[0] != loss(batch)[0]).item() == loss.couples_examples


@pytest.mark.parametrize("name", list_losses())
def test_the_reduction_is_declared_rightly(name):
    """Twice as long completions change the loss exactly when it reduces log-probs by the mean."""
    loss, batch = get_loss(name), random_batch()
    longer = PreferenceBatch.from_logps(
        batch.chosen.policy,
        batch.rejected.policy,
        batch.chosen.reference,
        batch.rejected.reference,
        chosen_tokens=batch.chosen.tokens * 2,
        rejected_tokens=batch.rejected.tokens * 2,
        prompt_embeddings=batch.chosen.prompt_embeddings,
    )
    assert (not torch.equal(loss(longer), loss(batch))) == (loss.reduction == "mean")
