"""Losses that read each token and its value: by hand, and PPO's estimates against a loop over the tokens."""

import math

import pytest
import torch

from losses import PreferenceBatch, Side, get_loss
from tests.losses.by_hand import nll


def side(name: str, logratios: list[list[float]], values: list[list[float]], **fields: torch.Tensor) -> Side:
    """Responses with these log-ratios and values of their tokens, each token at log-prob -1 under the reference."""
    width = max(map(len, logratios)) + 1  # one column of padding at least, and what stands there must not matter
    ratio, value, mask = (torch.full((len(logratios), width), x, dtype=torch.float64) for x in (9.0, 9.0, 0.0))
    for row, (of_row, of_values) in enumerate(zip(logratios, values, strict=True)):
        ratio[row, : len(of_row)], value[row, : len(of_row)] = (
            torch.tensor(x, dtype=torch.float64) for x in (of_row, of_values)
        )
        mask[row, : len(of_row)] = 1
    empty = Side(torch.zeros(len(logratios), dtype=torch.float64), name=name, needs=fields)
    return empty.with_tokens(ratio - 1, value, mask.bool(), torch.full_like(ratio, -1.0))


def batch_of(chosen: Side, rejected: Side) -> PreferenceBatch:
    return PreferenceBatch(chosen, rejected).with_stopped()


def two_responses() -> PreferenceBatch:
    """A chosen response of two tokens and a rejected one of one."""
    return batch_of(
        side("chosen", [[math.log(1.5), math.log(4)]], [[0.2, 0.6]]), side("rejected", [[math.log(0.25)]], [[-0.4]])
    )


SETTINGS = {"clip": 0.5, "critic_coef": 0.1, "kl_coef": 0.2, "gamma": 0.5, "lam": 0.5}


def test_ppo_offline():
    """r = 1.5, 4 and 0.25; V = 0.2, 0.6 and -0.4; gamma = lam = 0.5.

    delta: 0.5 * 0.6 - 0.2 = 0.1, 1 - 0.6 = 0.4 and -1 + 0.4 = -0.6; A: 0.1 + 0.25 * 0.4 = 0.2, 0.4 and -0.6. Their mean
    is 0 and their variance 0.56 / 3, so that they become 0.462910, 0.925820 and -1.388730.
    Surrogates: -0.462910 * 1.5 = -0.694365; 4 is clipped to 2: -1.851640; 0.25 to 0.5: 1.388730 * 0.5 = 0.694365.
    G is 1 before the rewarded token and 0 at the last: (0.8^2 + 0.6^2) / 2 = 0.5, and 0.4^2 / 2 = 0.08.
    Chosen: -2.546005 + 0.1 * 0.5 - 0.2 * log 6 = -2.854357; rejected: 0.694365 + 0.008 + 0.2 * log 4 = 0.979624.
    Two rows for three tokens: times 2/3.
    """
    rows = get_loss("ppo_offline")(two_responses(), **SETTINGS)
    assert rows.tolist() == pytest.approx([-1.902905, 0.653083], abs=1e-6)


def by_a_loop(batch: PreferenceBatch, clip, critic_coef, kl_coef, gamma, lam) -> float:
    """The mean over tokens, response by response and token by token from the last."""
    tokens = []
    for part, reward in ((batch.chosen, 1.0), (batch.rejected, -1.0)):
        for row in range(len(part)):
            count = int(part.token_mask[row].sum())
            following = advantage = to_come = 0.0
            for t in reversed(range(count)):
                now = reward if t == count - 1 else 0.0
                value = part.token_values[row, t].item()
                advantage = now + gamma * following - value + gamma * lam * advantage
                logratio = (part.token_policy[row, t] - part.token_reference[row, t]).item()
                tokens.append((advantage, logratio, value, to_come))
                following, to_come = value, now + gamma * to_come
    mean = sum(a for a, *_ in tokens) / len(tokens)
    deviation = math.sqrt(sum((a - mean) ** 2 for a, *_ in tokens) / len(tokens) + 1e-8)
    total = 0.0
    for a, logratio, value, to_come in tokens:
        a, r = (a - mean) / deviation, math.exp(logratio)
        total += max(-a * r, -a * min(max(r, clip), 1 / clip))
        total += critic_coef * 0.5 * (value - to_come) ** 2 - kl_coef * logratio
    return total / len(tokens)


def random_side(name: str, lengths: list[int], seed: int) -> Side:
    g = torch.Generator().manual_seed(seed)
    drawn = [[torch.randn(n, generator=g, dtype=torch.float64).tolist() for n in lengths] for _ in range(2)]
    return side(name, *drawn)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("settings", [{}, SETTINGS, {"gamma": 1.0, "lam": 1.0}, {"gamma": 0.0}, {"lam": 0.0}])
def test_ppo_offline_agrees_with_a_loop_over_the_tokens(settings, seed):
    batch = batch_of(random_side("chosen", [5, 1, 12], seed), random_side("rejected", [7, 2], seed + 10))
    loss = get_loss("ppo_offline")
    expected = by_a_loop(batch, **loss.settings(settings))
    assert loss(batch, **settings).mean().item() == pytest.approx(expected, rel=1e-9)


def gradients(name: str, batch: PreferenceBatch, **settings) -> list[torch.Tensor]:
    outputs = [part.outputs.clone().requires_grad_() for part in batch.parts]
    get_loss(name)(batch.with_policy(*outputs), **settings).mean().backward()
    return [output.grad for output in outputs]


def test_no_gradient_passes_through_ppo_s_advantages_and_none_beyond_the_clip():
    """In V: critic_coef * (V - G) / 3. In log pi: (-A r - kl_coef) / 3 where r = 1.5 is within the range, and elsewhere
    -kl_coef / 3 alone."""
    chosen, rejected = gradients("ppo_offline", two_responses(), **SETTINGS)
    assert chosen[0, 1].tolist() == pytest.approx([0.1 * -0.8 / 3, 0.1 * 0.6 / 3, 0.0], abs=1e-9)
    assert rejected[0, 1].tolist() == pytest.approx([0.1 * -0.4 / 3, 0.0], abs=1e-9)
    assert chosen[0, 0].tolist() == pytest.approx([(-0.694365 - 0.2) / 3, -0.2 / 3, 0.0], abs=1e-6)
    assert rejected[0, 0].tolist() == pytest.approx([-0.2 / 3, 0.0], abs=1e-6)


def test_ppo_offline_at_its_reference_is_its_critic_s_loss():
    """Whitened advantages have mean 0 and r is 1: critic_coef times (0.64 + 0.36 + 0.16) / 2 is left, over 3 tokens."""
    batch = batch_of(side("chosen", [[0.0, 0.0]], [[0.2, 0.6]]), side("rejected", [[0.0]], [[-0.4]]))
    assert get_loss("ppo_offline")(batch, **SETTINGS).mean().item() == pytest.approx(0.1 * 0.58 / 3, abs=1e-9)


@pytest.mark.parametrize("clip", [0.0, 1.0, 1.5, -1.0])
def test_a_clip_out_of_its_range_is_refused(clip):
    with pytest.raises(ValueError, match="clip must be a float above 0 and below 1"):
        get_loss("ppo_offline")(two_responses(), clip=clip)


def the_scored_pair() -> PreferenceBatch:
    """s_w = 1, s_l = -1; l_w = -1 and l_l = -3, in two tokens each; scores 3 and 1; V(x) = 2, others do not count."""
    return batch_of(
        side("chosen", [[2.0, -1.0]], [[2.0, 5.0]], scores=torch.tensor([3.0], dtype=torch.float64)),
        side("rejected", [[0.0, -1.0]], [[2.0, -5.0]], scores=torch.tensor([1.0], dtype=torch.float64)),
    )


def test_hpo():
    """s_w = 1, s_l = -1, beta 0.1: -log sigma(0.2) = 0.598139. A = 1 and -1: w = e = 2.718282 and 1/e = 0.367879.

    NLL per token (2 - 1) / 2 = 0.5 and (2 + 1) / 2 = 1.5: weight 0.2 times the mean of 1.359141 and 0.551819: 0.191096.
    Expectile 0.7: 0.7 * 1 and 0.3 * 1, mean 0.5, critic_coef 0.5: 0.25. Weights capped at 2: the first is 1.0 then.
    """
    loss, settings = get_loss("hpo"), {"beta": 0.1, "weight": 0.2, "critic_coef": 0.5}
    assert nll(0.2) == pytest.approx(0.598139, abs=1e-6)
    assert loss(the_scored_pair(), **settings).item() == pytest.approx(0.598139 + 0.191096 + 0.25, abs=2e-6)
    capped = loss(the_scored_pair(), **settings, max_weight=2.0).item()
    assert capped == pytest.approx(0.598139 + 0.2 * (1.0 + 0.551819) / 2 + 0.25, abs=2e-6)


def test_hpo_without_its_additions_is_dpo():
    batch = the_scored_pair()
    torch.testing.assert_close(get_loss("hpo")(batch, weight=0.0, critic_coef=0.0), get_loss("dpo")(batch))


def test_hpo_s_value_follows_its_expectile_alone():
    """d/dV of critic_coef * tau * A^2 / 2 is -critic_coef * tau * A: -0.35 and 0.15, in the first token's value."""
    chosen, rejected = gradients("hpo", the_scored_pair(), critic_coef=0.5, expectile=0.7)
    assert chosen[0, 1].tolist() == pytest.approx([-0.35, 0.0, 0.0])
    assert rejected[0, 1].tolist() == pytest.approx([0.15, 0.0, 0.0])
