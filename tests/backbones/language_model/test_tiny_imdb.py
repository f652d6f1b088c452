"""The packaged model of film reviews, for real, and the demo's first act on a smaller budget."""

from __future__ import annotations

import re

import pandas as pd
import pytest
import yaml

from harness.backbones.language_model.from_scratch import cut_into_windows
from harness.backbones.language_model.policy import load_policy, load_tokenizer
from harness.backbones.language_model.scoring import BatchSource
from harness.core.assets import model_folder
from harness.core.config import ModelConfig
from harness.tasks.reviews import load_reviews
from tests.conftest import REPOSITORY
from tests.tiny_experiment import run

pytestmark = pytest.mark.slow
QUICK = REPOSITORY / "experiments" / "sentiment_quick.yaml"


def test_tiny_imdb_continues_reviews_as_well_as_its_readme_says():
    folder = model_folder("tiny-imdb")
    texts = [review.text for review in load_reviews()["dev"]][:20]
    windows = cut_into_windows(load_tokenizer(folder, ModelConfig()), texts, 256)
    policy = load_policy(folder, ModelConfig())
    policy.verify()
    (scored,) = BatchSource(windows, 0, 8192).score([policy])
    told = float(re.search(r"cross-entropy ([\d.]+)", (folder / "README.md").read_text(encoding="utf-8"))[1])
    assert -scored.values.mean() == pytest.approx(told, abs=0.15)  # 20 of the 522 reviews that it was measured on


def test_the_first_act_trains_on_preferences_that_it_makes(tmp_path):
    sizes = ("train_pairs=24", "dev_pairs=8", "test_prompts=12")
    small = [
        f"results={tmp_path}",
        "figures=false",
        *(f"tasks.sentiment.{size}" for size in sizes),
        "train.batch_size=8",
    ]
    quick = yaml.safe_load(QUICK.read_text(encoding="utf-8"))
    quick["losses"] = {loss: quick["losses"][loss] for loss in ("dpo", "rpo_unpaired")}
    path = tmp_path / "quick.yaml"
    path.write_text(yaml.safe_dump(quick))
    assert run(path, *small) == 0
    folder = tmp_path / "quick"
    frame = pd.read_csv(folder / "leaderboard.csv")
    assert len(frame) == 1 + 2 * 2 and (frame.status == "ok").all()
    assert frame.query("loss == 'sft'").win_rate.item() == 50
    assert frame.reward.notna().all() and (frame.query("loss != 'sft'").kl_exact > 0).all()
    frontier = pd.read_csv(folder / "frontier.csv")
    assert set(frontier.method) == {"dpo", "rpo_unpaired"}
    assert (frontier.policies == 4).all()
