"""Listwise losses against loops over plain numbers in fp64, and what theory says of them in special cases."""

import itertools
import math

import pytest
import torch

from losses import Lists, MissingData, PreferenceBatch, get_loss
from tests.losses.by_hand import nll, the_pair

# log-ratios and scores of each prompt's responses, of which the first is chosen and the second rejected
RATIOS = [[2.0, -1.0], [0.5, 3.0, -2.0], [-4.0, 1.0, 0.0, 7.0], [1.0, -3.0, 2.0, 0.25]]
SCORES = [[9.0, 2.0], [8.0, 3.0, 5.0], [7.0, 1.0, 4.0, 2.0], [9.0, 1.0, 5.0, 5.0]]


def lists_of(ratios=RATIOS, scores=SCORES) -> PreferenceBatch:
    """A batch of lists of different lengths; the reference's log-probs are -20."""
    ratios, scores = ([torch.tensor(x, dtype=torch.float64) for x in values] for values in (ratios, scores))
    k = max(map(len, ratios)) - 2
    others = Lists(
        *(torch.zeros(len(ratios), k, dtype=torch.float64) for _ in range(3)), torch.zeros(len(ratios), k).bool()
    )
    for i, (ratio, score) in enumerate(zip(ratios, scores, strict=True)):
        n = len(ratio) - 2
        others.policy[i, :n], others.reference[i, :n], others.scores[i, :n] = ratio[2:] - 20, -20, score[2:]
        others.mask[i, :n] = True
    reference = torch.full((len(ratios),), -20.0, dtype=torch.float64)
    firsts, seconds = (torch.stack([ratio[side] for ratio in ratios]) for side in (0, 1))
    return PreferenceBatch.from_logps(
        firsts - 20, seconds - 20, reference, reference,
        chosen_scores=torch.stack([s[0] for s in scores]), rejected_scores=torch.stack([s[1] for s in scores]),
        others=others if k else None,
    )  # fmt: skip


def plackett_luce(ratios, scores, beta=0.1):
    """Of all that score no higher, the response at hand is the best: a product of probabilities."""
    product = 1.0
    for ratio, score in zip(ratios, scores, strict=True):
        product *= math.exp(beta * ratio) / sum(
            math.exp(beta * other) for other, below in zip(ratios, scores, strict=True) if below <= score
        )
    return -math.log(product)


def softmax(values):
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def lipo(ratios, scores, beta=0.05):
    """LambdaRank's weights, with ranks from sorting by log-ratio."""
    rank = {k: place for place, k in enumerate(sorted(range(len(ratios)), key=lambda k: -ratios[k]), 1)}
    total = 0.0
    for i, j in itertools.permutations(range(len(ratios)), 2):
        if scores[i] > scores[j]:
            gain = 2 ** scores[i] - 2 ** scores[j]
            discount = abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))
            total += gain * discount * nll(beta * (ratios[i] - ratios[j]))
    return total


def info_nca(ratios, scores, beta=0.01):
    choice = softmax([beta * ratio for ratio in ratios])
    return -sum(p * math.log(q) for p, q in zip(softmax(scores), choice, strict=True))


def nca_reward(ratios, scores, beta=0.01):
    rows = zip(softmax(scores), ratios, strict=True)
    return sum(p * nll(beta * ratio) + nll(-beta * ratio) / len(ratios) for p, ratio in rows)


def exo_rw(ratios, scores, beta=0.5, temperature=0.5):
    choice, target = softmax([beta * ratio for ratio in ratios]), softmax([score / temperature for score in scores])
    return sum(q * math.log(q / p) for q, p in zip(choice, target, strict=True))


BY_LOOP = {f.__name__: f for f in (plackett_luce, lipo, info_nca, nca_reward, exo_rw)}


@pytest.mark.parametrize("name", BY_LOOP)
def test_a_listwise_loss_is_its_loop_over_each_list(name):
    expected = [BY_LOOP[name](*row) for row in zip(RATIOS, SCORES, strict=True)]
    assert get_loss(name)(lists_of()).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", BY_LOOP)
def test_a_list_is_worth_the_same_beside_longer_ones(name):
    whole = get_loss(name)(lists_of())
    for i, (ratios, scores) in enumerate(zip(RATIOS, SCORES, strict=True)):
        assert get_loss(name)(lists_of([ratios], [scores])).item() == pytest.approx(whole[i].item(), rel=1e-12)


def test_plackett_luce():
    """z = 0.2, 0, -0.1 in the order of the scores: log(1 + e^-0.2 + e^-0.3) + log(1 + e^-0.1) = 0.939831 + 0.644397."""
    rows = get_loss("plackett_luce")(lists_of([[2.0, -1.0, 0.0]], [[3.0, 1.0, 2.0]]), beta=0.1)
    assert rows.item() == pytest.approx(1.584228, abs=1e-6)


def test_lipo():
    """psi = 1, 0, 0.5 and s = 2, -1, 0, in the same order: discounts 1/log 2, 1/log 4, 1/log 3 = 1.442695, 0.721348,
    0.910239. Gains 2, 1, 1.414214. beta 0.1: 1 * 0.721348 * 0.554355 + 0.585786 * 0.532456 * 0.598139
    + 0.414214 * 0.188892 * 0.644397 = 0.399883 + 0.186563 + 0.050419.
    """
    rows = get_loss("lipo")(lists_of([[2.0, -1.0, 0.0]], [[10.0, 0.0, 5.0]]), beta=0.1, score_scale=10.0)
    assert rows.item() == pytest.approx(0.636865, abs=2e-6)


def test_lipo_of_two_is_a_share_of_dpo():
    """D = |2 - 1| * (1/log 2 - 1/log 3) = 0.532456, whichever is ahead: the ranks change places, not their distance."""
    share = 1 / math.log(2) - 1 / math.log(3)
    for ratios in ([2.0, -1.0], [-1.0, 2.0], [0.0, 0.0]):
        pairs = lists_of([ratios], [[1.0, 0.0]])
        expected = share * get_loss("dpo")(pairs, beta=0.1).item()
        assert get_loss("lipo")(pairs, beta=0.1).item() == pytest.approx(expected)


def test_lipo_learns_from_the_start_on_where_all_log_ratios_are_equal():
    batch = lists_of([[0.0] * 3], [[1.0, 0.0, 0.5]])
    policy = batch.chosen.policy.clone().requires_grad_()
    get_loss("lipo")(batch.with_policy(policy, batch.rejected.policy, batch.others.policy)).sum().backward()
    assert policy.grad.item() < 0


def at_the_start(size: float, scores: list[float], off: list[float]) -> PreferenceBatch:
    """A list in fp32 whose log-probs are about -size, each so many units in the last place off its reference."""
    reference = torch.tensor([[-size, -1.5 * size, -0.7 * size, -1.2 * size]])
    unit = reference.abs() * torch.finfo(torch.float32).eps
    policy, scores = reference + unit * torch.tensor([off]), torch.tensor([scores])
    others = Lists(policy[:, 2:], reference[:, 2:], scores[:, 2:], torch.ones(1, 2, dtype=torch.bool))
    sides = (values[:, i] for values in (policy, reference) for i in (0, 1))
    return PreferenceBatch.from_logps(*sides, chosen_scores=scores[:, 0], rejected_scores=scores[:, 1], others=others)


@pytest.mark.parametrize("size", [0.1, 5.0, 500.0])
@pytest.mark.parametrize("off", [[-4.0, 4.0, 4.0, -4.0], [4.0, -4.0, -2.0, 3.0], [1.0, 3.0, 2.0, 4.0]])
def test_lipo_at_the_start_ranks_by_score_whatever_rounding_has_made_of_the_log_ratios(size, off):
    scores = [9.0, 1.0, 5.0, 3.0]
    expected = lipo([0.0, -3e-9, -1e-9, -2e-9], scores)  # the ranks are 1, 4, 2, 3
    assert get_loss("lipo")(at_the_start(size, scores, off)).item() == pytest.approx(expected, rel=1e-4)


def test_what_lipo_takes_for_a_tie_grows_with_the_log_probs_and_with_the_rounding_of_the_layers():
    """A log-ratio of 1e-4 nats is a lead at log-probs of -5, and rounding at -500; in bfloat16 so is one of 0.1."""

    def first(size: float, lead: float, layers: torch.dtype | None = None) -> int:
        policy, reference = torch.tensor([[-size, -size + lead]]), torch.tensor([[-size, -size]])
        lists = Lists(policy, reference, torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool), layers=layers)
        return lists.ahead[0].sum(dim=1).argmin().item()

    assert (first(5.0, 1e-4), first(500.0, 1e-4)) == (1, 0)
    assert (first(5.0, 0.1), first(5.0, 0.1, torch.bfloat16), first(5.0, 2.0, torch.bfloat16)) == (1, 0, 1)


def test_info_nca():
    """Scores log 3 and 0: targets 3/4 and 1/4; beta 0.1: 0.75 * 0.554355 + 0.25 * 0.854355."""
    pair = lists_of([[2.0, -1.0]], [[math.log(3), 0.0]])
    assert get_loss("info_nca")(pair, beta=0.1, temperature=1.0).item() == pytest.approx(0.629355, abs=1e-6)


def test_nca_reward():
    """Targets 3/4 and 1/4, z = 0.2 and -0.1: 0.75 * 0.598139 + 0.25 * 0.744397 + (0.798139 + 0.644397) / 2."""
    pair = lists_of([[2.0, -1.0]], [[math.log(3), 0.0]])
    assert get_loss("nca_reward")(pair, beta=0.1, temperature=1.0).item() == pytest.approx(1.355972, abs=1e-6)


def test_exo_rw():
    """q = sigma(0.3) = 0.574443 against p = 3/4: 0.574443 * log(0.574443 / 0.75) + 0.425557 * log(0.425557 / 0.25)."""
    pair = lists_of([[2.0, -1.0]], [[math.log(3), 0.0]])
    expected = 0.574443 * math.log(0.574443 / 0.75) + 0.425557 * math.log(0.425557 / 0.25)
    assert get_loss("exo_rw")(pair, beta=0.1, temperature=1.0).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("listed", "paired"), [("info_nca", "dpo"), ("nca_reward", "nca")])
def test_at_low_temperature_two_scored_responses_are_a_plain_pair(listed, paired):
    pair = lists_of([[2.0, -1.0]], [[3.0, 1.0]])
    sharp = get_loss(listed)(pair, beta=0.1, temperature=1e-4).item()
    assert sharp == pytest.approx(get_loss(paired)(pair, beta=0.1).item())


def test_exo_rw_of_two_is_exo_at_the_label_smoothing_of_its_scores():
    """Scores log 9 apart: the target is 0.9 and 0.1."""
    pair = lists_of([[2.0, -1.0]], [[math.log(9), 0.0]])
    expected = get_loss("exo")(pair, beta=0.1, label_smoothing=0.1).item()
    assert get_loss("exo_rw")(pair, beta=0.1, temperature=1.0).item() == pytest.approx(expected)


@pytest.mark.parametrize("scored", [True, False])
def test_plackett_luce_of_two_is_dpo(scored):
    pairs = the_pair(chosen_scores=torch.tensor([3.0]), rejected_scores=torch.tensor([1.0])) if scored else the_pair()
    assert get_loss("plackett_luce")(pairs, beta=0.1).item() == pytest.approx(get_loss("dpo")(pairs, beta=0.1).item())


def test_at_the_start_plackett_luce_counts_the_orders():
    """All K! orders of K responses are alike likely."""
    rows = get_loss("plackett_luce")(lists_of([[0.0] * 2, [0.0] * 3, [0.0] * 4], SCORES[:3]))
    assert rows.tolist() == pytest.approx([math.log(math.factorial(k)) for k in (2, 3, 4)])


def test_pairs_are_lists_of_two_with_ranks_for_scores():
    lists = the_pair().lists
    assert lists.logratio.tolist() == [[2.0, -1.0]] and lists.scores.tolist() == [[1.0, 0.0]]
    assert lists.mask.tolist() == [[True, True]]


def test_the_others_stand_behind_chosen_and_rejected():
    lists = lists_of().lists
    assert lists.scores[1].tolist() == [8.0, 3.0, 5.0, 0.0] and lists.mask[1].tolist() == [True, True, True, False]
    assert lists.logratio[1].tolist() == [0.5, 3.0, -2.0, 0.0]


def test_a_modifier_of_log_ratios_reaches_the_whole_list():
    rows = get_loss("plackett_luce+js")(lists_of())
    linked = [[math.log(2 / (1 + math.exp(-s))) for s in ratios] for ratios in RATIOS]
    assert rows.tolist() == pytest.approx([plackett_luce(*row) for row in zip(linked, SCORES, strict=True)])


def test_lists_without_what_they_need_are_refused():
    with pytest.raises(MissingData, match="needs reference for its lists"):
        get_loss("plackett_luce")(PreferenceBatch.from_logps(torch.zeros(2), torch.zeros(2)))
    others = lists_of().others
    with pytest.raises(ValueError, match="belong to pairs with scores, one list of them to each pair"):
        PreferenceBatch.from_logps(*[torch.zeros(4)] * 4, others=others)
    with pytest.raises(ValueError, match="3 chosen and 2 rejected do not pair up"):
        get_loss("plackett_luce")(PreferenceBatch.from_logps(*[torch.zeros(n) for n in (3, 2, 3, 2)]))
