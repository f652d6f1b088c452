"""Preferences that an experiment makes: what is drawn, and how it is labelled."""

import numpy as np
import pytest

from harness.backbones.language_model.policy import load_policy, load_tokenizer
from harness.backbones.language_model.preferences import Drawn, Generation, draw, label_completions, read_labelled
from harness.backbones.language_model.sampler import Sampler
from harness.backbones.language_model.sampling import Drawing
from harness.backbones.language_model.tokens import Tokens, TokenSplit
from harness.core.config import GenerateConfig, ModelConfig
from harness.core.errors import UserError
from harness.core.prompt import Message
from harness.core.render import Renderer
from harness.core.store import read_json, read_jsonl
from harness.tasks.rewards.base import Reward
from harness.training.batch import Example

SHORTER = Reward("shorter", lambda prompt, response: -float(len(response)), lambda: "1")


def prompts(count: int) -> TokenSplit:
    """Return a split of prompts with demonstrations."""
    examples = [Example((Message("user", f"prompt {i}"),), i, None) for i in range(count)]
    return TokenSplit(examples, [Tokens((5, 6 + i), (7, 8)) for i in range(count)])


def completions(*scores: float) -> list[Drawn]:
    return [Drawn((10 + k,), score) for k, score in enumerate(scores)]


def text_of(split: TokenSplit, index: int) -> int:
    """Return the first token of a completion, which tells the tests' completions apart."""
    return split.sequences[index].completion[0]


def test_a_pair_is_the_best_and_the_worst_with_their_scores_and_the_others_go_with_it():
    made = label_completions(prompts(1), [completions(0.3, 0.9, 0.1, 0.5)], GenerateConfig(samples=4))
    (example,) = made.examples
    assert (text_of(made, example.chosen), text_of(made, example.rejected)) == (11, 12)
    assert [text_of(made, i) for i in example.others] == [10, 13]
    assert example.scores == (0.9, 0.1, 0.3, 0.5)
    assert {s.prompt for s in made.sequences} == {(5, 6)} and made.paired


def test_completions_of_equal_reward_make_no_pair():
    made = label_completions(prompts(2), [completions(0.5, 0.5), completions(0.2, 0.4)], GenerateConfig())
    assert [example.prompt[0].content for example in made.examples] == ["prompt 1"]


def test_unpaired_each_completion_has_a_label_of_its_own():
    options = GenerateConfig(labels="unpaired", threshold=0.4)
    made = label_completions(prompts(2), [completions(0.5, 0.3), completions(0.6, 0.9)], options)
    assert [e.chosen is not None for e in made.examples] == [True, False, True, True]
    assert all((e.chosen is None) != (e.rejected is None) for e in made.examples)


def test_a_wrong_label_exchanges_the_two_of_a_pair_and_the_scores_stay_in_their_places():
    drawn = [completions(0.1, 0.9)] * 400
    right = label_completions(prompts(400), drawn, GenerateConfig())
    noisy = label_completions(prompts(400), drawn, GenerateConfig(flip=0.2))
    wrong = [text_of(noisy, e.chosen) == 10 for e in noisy.examples]
    assert not any(text_of(right, e.chosen) == 10 for e in right.examples)
    assert 0.14 < np.mean(wrong) < 0.26  # three standard errors
    assert all(e.scores == (0.9, 0.1) for e in noisy.examples)
    assert [e.prompt for e in noisy.examples] == [e.prompt for e in right.examples]


@pytest.mark.parametrize("labels", ["pairs", "unpaired"])
def test_which_labels_are_wrong_depends_on_seed_and_prompt_alone(labels):
    def chosen(count: int, seed: int) -> list:
        options = GenerateConfig(flip=0.3, labels=labels, seed=seed)
        made = label_completions(prompts(count), [completions(0.1, 0.9)] * count, options)
        return [e.chosen and text_of(made, e.chosen) for e in made.examples]

    per_prompt = 1 if labels == "pairs" else 2
    assert chosen(50, 0) == chosen(80, 0)[: 50 * per_prompt] != chosen(50, 1)


def test_labels_of_one_kind_alone_are_the_user_s_to_mend():
    with pytest.raises(UserError, match="none is rejected; both are needed"):
        label_completions(prompts(1), [completions(0.8, 0.9)], GenerateConfig(labels="unpaired"))
    with pytest.raises(UserError, match="none is chosen"):
        label_completions(prompts(1), [completions(0.5, 0.5)], GenerateConfig())


@pytest.fixture(scope="module")
def drawn_in(tiny_model, tmp_path_factory):
    """Draw completions for so many prompts with these options; return the folder."""
    policy = load_policy(tiny_model, ModelConfig())
    renderer = Renderer(load_tokenizer(tiny_model, ModelConfig()))

    def make(count: int = 6, batch_size: int = 4, **options):
        folder = tmp_path_factory.mktemp("drawn")
        generation = Generation(GenerateConfig(**{"samples": 3, **options}), SHORTER, limit=6)
        seen = []
        splits = {"train": prompts(count), "dev": prompts(2)}
        drawing = Drawing(
            generation.decoding(batch_size), generation.options.seed, renderer.stop_tokens, renderer.pad_token
        )
        draw(policy, Sampler(drawing, renderer), splits, generation, folder, lambda *n: seen.append(n))
        assert seen[-1] == (3 * (count + 2), 3 * (count + 2))
        return folder

    return make


def test_completions_are_kept_with_the_reward_that_labels_them(drawn_in):
    folder = drawn_in()
    rows = read_jsonl(folder / "train.jsonl")
    assert len(rows) == 6 and all(len(row["completions"]) == 3 for row in rows)
    for row in rows:
        for completion in row["completions"]:
            assert completion["score"] == -len(completion["text"]) and 1 <= len(completion["ids"]) <= 6
    made = read_labelled(folder, "train", prompts(6), GenerateConfig(samples=3))
    by_ids = {tuple(c["ids"]): c["score"] for row in rows for c in row["completions"]}
    for example in made.examples:
        sides = [made.sequences[i].completion for i in (example.chosen, example.rejected, *example.others)]
        assert tuple(by_ids[ids] for ids in sides) == example.scores
        assert example.scores[0] == max(example.scores) > example.scores[1] == min(example.scores)
    scores = [c["score"] for row in rows for c in row["completions"]]
    assert read_json(folder / "summary.json")["train"]["mean_reward"] == pytest.approx(np.mean(scores))


def test_what_is_drawn_depends_on_the_seed_and_the_prompt_alone(drawn_in):
    def rows(**options):
        return read_jsonl(drawn_in(**options) / "train.jsonl")

    first = rows()
    assert rows(batch_size=100) == first == rows(count=9)[:6]
    assert rows(seed=1) != first
