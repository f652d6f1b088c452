"""The offline judge: a logistic regression on pairs. Texts are embedded as hashed bags of words, defined here."""

import json
import re
import zlib

import numpy as np
import pytest

from harness.core.errors import UserError
from harness.core.prompt import Message
from harness.evaluation.base import JUDGES, Comparison
from harness.evaluation.judges.preference_model import PreferenceModelOptions, fit, make
from harness.evaluation.statistics.intervals import wilson_interval
from harness.tasks.base import Preference

DIMENSIONS = 64
FILLER = [f"word{i}" for i in range(40)]


def bag_of_words(texts):
    """Return (n, 64) float32 unit vectors: counts of words, each hashed to one of 64 dimensions."""
    counts = np.zeros((len(texts), DIMENSIONS), dtype=np.float32)
    for row, text in zip(counts, texts, strict=True):
        for word in re.findall(r"\w+", text.lower()):
            row[zlib.crc32(word.encode()) % DIMENSIONS] += 1
    return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


def pairs(count, seed, chosen="kind", rejected="rude"):
    """Return pairs that differ in one word among random filler of random length."""
    rng = np.random.default_rng(seed)

    def text(word):
        words = [*rng.choice(FILLER, rng.integers(5, 15)), word]
        return " ".join(rng.permutation(words))

    return [Preference((Message("user", f"question {seed} {i}"),), text(chosen), text(rejected)) for i in range(count)]


def randomly_labelled(count, seed):
    flips = np.random.default_rng(seed).random(count) < 0.5
    return [
        Preference(pair.prompt, pair.rejected, pair.chosen) if flip else pair
        for pair, flip in zip(pairs(count, seed), flips, strict=True)
    ]


@pytest.fixture
def fitted(make_context):
    """Return a function that fits a judge with a store in the named folder."""

    def fitted(fit, held_out=(), folder="", options=None, **changes):
        context = make_context(folder, fit=fit, held_out=held_out, **{"embed": bag_of_words, **changes})
        return make(options or PreferenceModelOptions(), context)

    return fitted


def model_of(tmp_path, folder=""):
    (path,) = (tmp_path / folder).rglob("model.json")
    return json.loads(path.read_text())


def judged(judge, comparisons):
    return judge.judge(comparisons, lambda done: None)


def test_it_learns_what_is_preferred_and_says_how_often_it_is_right(fitted):
    agreement = fitted(pairs(120, seed=0), pairs(200, seed=1), labels="people").agreement
    assert agreement.accuracy >= 0.95
    assert (agreement.n, agreement.labels) == (200, "people")
    assert (agreement.low, agreement.high) == wilson_interval(round(200 * agreement.accuracy), 200)


def test_on_random_labels_it_claims_no_skill(fitted):
    agreement = fitted(randomly_labelled(120, seed=0), randomly_labelled(300, seed=1)).agreement
    assert agreement.low < 0.5 < agreement.high


def test_agreement_counts_each_held_out_pair(fitted):
    """Three pairs labelled as in training and one the opposite way: 3 of 4."""
    held_out = pairs(4, seed=1)
    held_out[2] = Preference(held_out[2].prompt, held_out[2].rejected, held_out[2].chosen)
    unpaired = Preference(held_out[0].prompt, "kind", None)
    agreement = fitted(pairs(120, seed=0), [*held_out, unpaired]).agreement
    assert (agreement.accuracy, agreement.n) == (0.75, 4)


def test_without_held_out_pairs_there_is_no_agreement(fitted):
    assert fitted(pairs(40, seed=0)).agreement is None


def test_swapping_the_sides_turns_every_verdict_round(fitted):
    judge = fitted(randomly_labelled(60, seed=0))
    comparisons = [Comparison(str(i), p.prompt, p.chosen, p.rejected) for i, p in enumerate(pairs(100, seed=3))]
    swapped = [Comparison(c.id, c.prompt, c.baseline, c.response) for c in comparisons]
    one, other = judged(judge, comparisons), judged(judge, swapped)
    assert {j.preference > 0.5 for j in one} == {False, True}
    assert [j.preference for j in other] == pytest.approx([1 - j.preference for j in one])
    assert all(j.status == "ok" and j.flipped is None for j in one + other)


def test_judgements_come_in_order_and_progress_counts_them(fitted):
    judge, done = fitted(pairs(120, seed=0)), []
    comparisons = [
        Comparison("x", (Message("user", "q"),), "be kind", "be rude"),
        Comparison("y", (Message("user", "q"),), "be rude", "be kind"),
    ]
    judgements = judge.judge(comparisons, done.append)
    assert [(j.id, j.preference > 0.9, j.preference < 0.1) for j in judgements] == [
        ("x", True, False),
        ("y", False, True),
    ]
    assert sum(done) == 2
    assert judged(judge, []) == []


def test_identical_responses_are_a_tie_even_if_the_encoder_rounds_differently_each_time(fitted):
    rng = np.random.default_rng(0)
    judge = fitted(pairs(40, seed=0), embed=lambda texts: bag_of_words(texts) + 1e-4 * rng.random((len(texts), 1)))
    (judgement,) = judged(judge, [Comparison("x", (Message("user", "q"),), "same", "same")])
    assert (judgement.status, judgement.preference) == ("tie", 0.5)


def test_length_counts_too(fitted):
    """If only length distinguishes the sides, the judge learns to prefer length. The embeddings are equal."""
    longer = [Preference((Message("user", f"q{i}"),), "la " * (5 + i), "la " * (1 + i)) for i in range(40)]
    judge = fitted(longer, embed=lambda texts: np.ones((len(texts), 4), dtype=np.float32) / 2)
    (judgement,) = judged(judge, [Comparison("x", (Message("user", "q"),), "la la la", "la")])
    assert judgement.preference > 0.5


def test_the_response_is_at_the_end_of_what_is_embedded_behind_the_last_user_turn(fitted):
    """An encoder that keeps only the end of a long text still sees the response."""
    seen = []

    def keeps_the_end(texts):
        seen.extend(texts)
        return bag_of_words([text[-60:] for text in texts])

    turns = (Message("user", "first"), Message("assistant", "then"), Message("user", "word0 " * 300))
    long = [Preference(turns, p.chosen, p.rejected) for p in pairs(100, seed=1)]
    short = [Preference((Message("user", f"{i}"),), p.chosen, p.rejected) for i, p in enumerate(pairs(100, seed=0))]
    assert fitted(short, long, embed=keeps_the_end).agreement.accuracy >= 0.9
    assert f"{turns[-1].content[-300:]}\n\n{long[0].chosen}" in seen
    assert f"0\n\n{short[0].chosen}" in seen


def test_a_refit_gives_the_same_judge(fitted, tmp_path):
    first, second = fitted(pairs(60, seed=0), folder="one"), fitted(pairs(60, seed=0), folder="two")
    assert re.fullmatch(r"preference_model:[0-9a-f]{8}", first.id)
    assert first.id == second.id
    assert model_of(tmp_path, "one") == model_of(tmp_path, "two")


def test_a_fit_and_its_agreement_that_the_store_has_are_not_repeated(fitted):
    calls = []

    def counting(texts):
        calls.append(len(texts))
        return bag_of_words(texts)

    first = fitted(pairs(40, seed=0), embed=counting)
    assert calls == [40, 40]
    assert fitted(pairs(40, seed=0), embed=counting).id == first.id
    assert calls == [40, 40]
    held_out = pairs(30, seed=1)
    measured = fitted(pairs(40, seed=0), held_out=held_out, embed=counting)
    assert calls[2:] == [40, 40, 30, 30] and measured.id == first.id
    again = fitted(pairs(40, seed=0), held_out=held_out, embed=counting)
    assert len(calls) == 6 and again.agreement == measured.agreement and again.agreement.n == 30


def test_words_can_outweigh_a_length_that_was_never_seen(fitted):
    """Kind answers are 1.5 times as long as rude ones, but a rude one of 100,000 words does not win by its length."""
    longer = [Preference(p.prompt, f"{p.chosen} {'word1 ' * 6}", p.rejected) for p in pairs(200, seed=0)]
    judge = fitted(longer)
    for n in (10, 100, 100_000):
        (judgement,) = judged(judge, [Comparison("x", longer[0].prompt, "rude " * n, "kind word1 word1 word1 " * 5)])
        assert judgement.preference < 0.5, n


@pytest.mark.parametrize(
    "change",
    [
        {"fit": pairs(60, seed=1)},
        {"encoder": "another"},
        {"options": PreferenceModelOptions(C=[1.0])},
    ],
    ids=["pairs", "encoder", "options"],
)
def test_what_changes_the_fit_changes_the_id(fitted, change):
    assert fitted(**{"fit": pairs(60, seed=0), **change}).id != fitted(pairs(60, seed=0)).id


def test_the_artifact_is_json_alone(fitted, tmp_path):
    fitted(pairs(40, seed=0))
    (folder,) = (tmp_path / "store" / "preference-models").glob("[0-9a-f]*")
    assert {path.name for path in folder.iterdir()} == {"model.json", "artifact.json"}
    model = model_of(tmp_path)
    assert model["features"] in PreferenceModelOptions().features
    assert model["C"] in PreferenceModelOptions().C
    widths = {"style": 11, "words": len(model["words"]["vocabulary"]), "embedding": DIMENSIONS}
    assert len(model["coefficients"]) == sum(widths[block] for block in model["features"].split("+"))


def test_the_penalty_is_chosen_on_prompts_that_were_left_out():
    """Each prompt has its own feature, which is useless for other prompts: the strongest penalty must win.

    With pairs of one prompt on both sides of a fold, as with the second grouping, a weak penalty would win.
    """
    prompts, copies = 30, 6
    features = np.repeat(np.eye(prompts), copies, axis=0)
    features += 0.3 * np.random.default_rng(0).standard_normal(features.shape)
    groups = [str(i // copies) for i in range(prompts * copies)]
    options = PreferenceModelOptions(features=["embedding"], C=[1e-3, 1.0, 100.0])
    assert fit({"embedding": features}, groups, options)["C"] == 1e-3
    assert fit({"embedding": features}, [str(i) for i in range(len(groups))], options)["C"] > 1e-3


def test_the_blocks_that_say_something_are_chosen_and_all_candidates_losses_kept():
    """Style is noise and the words are informative; in the reverse case, the smaller candidate is enough."""
    rng = np.random.default_rng(0)
    noise, signal = rng.standard_normal((100, 11)), np.abs(rng.standard_normal((100, 3)))
    groups = [str(i) for i in range(100)]
    options = PreferenceModelOptions(features=["style", "style+words"])
    model = fit({"style": noise, "words": signal}, groups, options)
    assert model["features"] == "style+words"
    assert set(model["validation_loss"]) == {"style", "style+words"}
    assert fit({"style": np.abs(noise), "words": rng.standard_normal((100, 3))}, groups, options)["features"] == "style"


@pytest.mark.parametrize("skill", [0.6, 0.75, 0.9])
def test_the_probability_is_calibrated(fitted, skill):
    """A word marks the better response in `skill` of the pairs: on new pairs, confidence must be close to accuracy.

    The judge is slightly underconfident, because it is calibrated on margins of models fitted to a fifth less data.
    """
    rng = np.random.default_rng(0)

    def noisy(count, seed):
        return [
            p if rng.random() < skill else Preference(p.prompt, p.rejected, p.chosen) for p in pairs(count, seed=seed)
        ]

    judge = fitted(noisy(400, seed=0))
    new = [Comparison(str(i), p.prompt, p.chosen, p.rejected) for i, p in enumerate(noisy(400, seed=1))]
    preferences = np.array([j.preference for j in judged(judge, new)])
    sure, right = np.maximum(preferences, 1 - preferences).mean(), (preferences > 0.5).mean()
    assert right - 0.1 < sure < right + 0.05


def test_too_few_pairs_are_refused(fitted):
    unpaired = [Preference((Message("user", f"q{i}"),), "text", None) for i in range(50)]
    with pytest.raises(UserError, match=r"19 pairs on 19 prompts are too few.*judge_pairs"):
        fitted(pairs(19, seed=0) + unpaired)
    one_prompt = [Preference((Message("user", "q"),), p.chosen, p.rejected) for p in pairs(30, seed=0)]
    with pytest.raises(UserError, match="30 pairs on 1 prompts"):
        fitted(one_prompt)
    assert fitted(pairs(20, seed=0)).id


@pytest.mark.parametrize(
    "options", [{"C": []}, {"C": [0.0]}, {"C": [float("inf")]}, {"folds": 1}, {"features": []}, {"features": ["stile"]}]
)
def test_settings_that_cannot_work_are_refused(options):
    JUDGES.get("preference_model").check(PreferenceModelOptions())
    with pytest.raises(UserError, match=r"judge\.(C|folds|features)"):
        JUDGES.get("preference_model").check(PreferenceModelOptions(**options))
