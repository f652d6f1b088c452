"""Preferences that an experiment makes itself: completions of the SFT policy, scored by a reward, labelled by the score.

What is drawn depends on the SFT weights, the prompts, the reward and a seed; how it is labelled (pairs or not, with
how many wrong labels) is decided when it is read, so that tasks which differ in that alone share what was drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.backbones.language_model.policy import Policy
from harness.backbones.language_model.sampler import Sampler
from harness.backbones.language_model.tokens import Tokens, TokenSplit
from harness.core.config import GenerateConfig, SampleConfig
from harness.core.errors import UserError
from harness.core.prompt import prompt_key, prompt_text
from harness.core.render import Renderer
from harness.core.store import read_jsonl, write_json, write_jsonl
from harness.tasks.rewards.base import Reward
from harness.training.batch import Example


@dataclass(frozen=True)
class Drawn:
    """A sampled completion with its reward."""

    ids: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class Generation:
    """How a task makes its preferences: completions of at most `limit` tokens, scored by `reward`."""

    options: GenerateConfig
    reward: Reward
    limit: int

    @property
    def drawing(self) -> dict:
        """What determines the completions and their scores, besides the policy and the prompts."""
        options = self.options
        reward = [options.reward, self.reward.version()]
        return {"format": 1, "reward": reward, "samples": options.samples, "seed": options.seed, "limit": self.limit}

    @property
    def labelling(self) -> dict:
        """What determines the labels, besides the scores."""
        options = self.options
        threshold = {"threshold": options.threshold} if options.labels == "unpaired" else {}
        return {"labels": options.labels, "flip": options.flip, **threshold}

    @property
    def paired(self) -> bool:
        """Whether it makes pairs."""
        return self.options.labels == "pairs"


def draw(
    policy: Policy,
    renderer: Renderer,
    splits: Mapping[str, TokenSplit],
    generation: Generation,
    *,
    batch_size: int,
    folder: Path,
    progress: Callable[[int, int], None],
) -> None:
    """Sample completions for every prompt, score them, and write a file for each split.

    Sampling is untruncated, at temperature 1: the completions are the policy's own. Their noise depends on the
    prompt, so that more prompts change none of those that were there.
    """
    options, reward = generation.options, generation.reward
    decoding = SampleConfig(temperature=1.0, top_p=1.0, max_new_tokens=generation.limit, batch_size=batch_size)
    total = sum(len(split.examples) for split in splits.values()) * options.samples
    done, summary = 0, {}
    for name, split in splits.items():
        prompts = [prompt_ids(split, example) for example in split.examples]
        texts = [prompt_text(example.prompt) for example in split.examples]
        keys = [prompt_key(example.prompt) for example in split.examples]
        before = done
        samples = Sampler(decoding, options.seed, renderer)(
            policy,
            [ids for ids in prompts for _ in range(options.samples)],
            [f"{key}:{k}" for key in keys for k in range(options.samples)],
            lambda now, _, before=before: progress(before + now, total),
        )
        done += len(samples)
        rows = []
        for i, (key, text) in enumerate(zip(keys, texts, strict=True)):
            own = samples[i * options.samples : (i + 1) * options.samples]
            answers = [renderer.decode(s.ids) for s in own]
            scored = [
                {"ids": list(s.ids), "text": answer, "score": reward(text, answer)}
                for s, answer in zip(own, answers, strict=True)
            ]
            rows.append({"prompt": key, "completions": scored})
        write_jsonl(folder / f"{name}.jsonl", rows)
        scores = np.array([[c["score"] for c in row["completions"]] for row in rows])
        summary[name] = {
            "prompts": len(rows),
            "mean_reward": float(scores.mean()),
            "sd_reward": float(scores.std()),
            "mean_gap": float(np.ptp(scores, axis=1).mean()),
        }
    write_json(folder / "summary.json", summary)


def read_labelled(folder: Path, name: str, split: TokenSplit, options: GenerateConfig) -> TokenSplit:
    """Return what was drawn for a split as training data, labelled as `options` say (see `label_completions`)."""
    rows = read_jsonl(folder / f"{name}.jsonl")
    drawn = [[Drawn(tuple(c["ids"]), c["score"]) for c in row["completions"]] for row in rows]
    return label_completions(split, drawn, options)


def label_completions(split: TokenSplit, drawn: Sequence[Sequence[Drawn]], options: GenerateConfig) -> TokenSplit:
    """Return the completions of each example's prompt as labelled examples.

    Pairs: the completion with the highest reward against that with the lowest, with both scores, and the others as
    further responses. Where all are equal there is no preference, and no pair. Unpaired: each completion by itself,
    desirable if its reward is above the threshold. A label is wrong with probability `flip`: the two of a pair then
    change places, each with the score that belongs to its place. Which ones are wrong depends on the seed and the
    prompt alone.
    """
    index: dict[Tokens, int] = {}
    examples: list[Example] = []
    for example, completions in zip(split.examples, drawn, strict=True):
        ids = prompt_ids(split, example)
        at = [index.setdefault(Tokens(ids, c.ids), len(index)) for c in completions]
        wrong = _noise(options.seed, prompt_key(example.prompt), len(completions)) < options.flip
        scores = [c.score for c in completions]
        if options.labels == "unpaired":
            for i, score, flipped in zip(at, scores, wrong, strict=True):
                good = (score > options.threshold) != flipped
                examples.append(Example(example.prompt, i if good else None, None if good else i))
        elif max(scores) > min(scores):
            order = [int(np.argmax(scores)), int(np.argmin(scores))]
            order += [k for k in range(len(at)) if k not in order]
            ranked = tuple(scores[k] for k in order)
            best, worst, *others = (at[k] for k in order)
            sides = (worst, best) if wrong[0] else (best, worst)
            examples.append(Example(example.prompt, *sides, ranked, tuple(others)))
    for side in ("chosen", "rejected"):
        if all(getattr(example, side) is None for example in examples):
            raise UserError(
                f"of the {len(examples)} completions labelled by {options.reward} none is {side}; both are needed: "
                "give more prompts or samples, or another threshold"
            )
    return TokenSplit(examples, list(index))


def prompt_ids(split: TokenSplit, example: Example) -> tuple[int, ...]:
    """Return the token ids of an example's prompt."""
    return split.sequences[example.rejected if example.chosen is None else example.chosen].prompt


def _noise(seed: int, key: str, count: int) -> np.ndarray:
    """Return `(count,)` uniform numbers that depend on the seed and the prompt alone."""
    digest = hashlib.sha256(f"labels:{seed}:{key}".encode()).digest()[:8]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big"))).random(count)
