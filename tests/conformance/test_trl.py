"""The losses that TRL also has, against TRL's own trainer code, on 2,000 real pairs with log-probs of Pythia-2.8B.

Each comparison builds a real trainer with its real configuration. Its language model is replaced by one that returns
the recorded log-probs. The value and the gradient on every log-prob must agree.
"""

from __future__ import annotations

import gzip
import importlib
import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from harness.conformance.trl import ALONE, COUNTERPARTS, NEAR, PROMPTS, SURE, TANGENT, TOLERANCE, VERSION, Counterpart
from losses import History, PreferenceBatch, Side, get_loss
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
trl = pytest.importorskip("trl", reason="TRL is not installed: pip install -c constraints.txt '.[oracle]'")

RECORDED = REPOSITORY / "tests/data" / "pythia_logprobs.jsonl.gz"
HOMES = {"DPO": "trl", "KTO": "trl", "CPO": "trl.experimental.cpo", "ORPO": "trl.experimental.orpo"}
SIDES = ("chosen", "rejected")
PAIRS_ALONE, PAIRS_TOGETHER = 40, 250
PROMPT_LOGP = -3.0


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    """Policy and reference log-probs and token counts of all chosen, then all rejected responses, in fp64."""
    with gzip.open(RECORDED, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    fields = {"policy": "policy_{}_logp", "reference": "reference_{}_logp", "tokens": "{}_tokens"}
    return {
        name: torch.tensor([row[key.format(side)] for side in SIDES for row in rows], dtype=torch.float64)
        for name, key in fields.items()
    }


def prompt_length(setup: str) -> int:
    """Return the number of tokens of each prompt."""
    return 2 if setup == PROMPTS else 1


def log_squares(setup: str) -> float:
    """Return the log of the sum of squares of each token's distribution. WPO's confidence is relative to it."""
    return -5.0 if setup == SURE else 0.0


class Recorded(nn.Module):
    """A language model that returns recorded log-probs: a response's whole sum on its first token, 0 on the others.

    A row's first token is the index of its response. The other tokens are token 1 of a vocabulary of two. Prompt tokens
    after the first one have the log-prob `PROMPT_LOGP`.
    """

    def __init__(self, sums: Tensor, setup: str):
        super().__init__()
        self.sums, self.prompt, self.squares = sums, prompt_length(setup), log_squares(setup)

    def forward(self, input_ids, labels=None, fused_lm_head=False, **_) -> SimpleNamespace:
        rows, length = input_ids.shape
        before = self.sums.new_full((rows, self.prompt - 1), PROMPT_LOGP)
        after = self.sums.new_zeros(rows, length - 1 - self.prompt)
        logps = torch.cat([before, self.sums[input_ids[:, :1]], after], dim=1)  # of the tokens 1, 2, ...
        if fused_lm_head:  # TRL's path without logits returns log-probs of the labels, 0 where there is no label
            logps, nothing = logps * (labels[:, 1:] != -100), torch.zeros_like(logps)
            logged = {"entropy": nothing, "mean_logits": nothing, "is_top1": nothing.bool()}
            return SimpleNamespace(log_probs=logps, log_sum_sq_probs=nothing + self.squares, **logged)
        other = torch.log(-torch.expm1(logps)).clamp(min=-1000)
        logits = torch.stack([other, logps], dim=2)
        return SimpleNamespace(logits=nn.functional.pad(logits, (0, 0, 0, 1)))


def tokens_of(data: dict[str, Tensor], prompt: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, attention mask and completion mask, `(responses, length)`; the prompt has `prompt` tokens."""
    counts = data["tokens"].long()
    place = torch.arange(int(counts.max()) + prompt).expand(len(counts), -1)
    attention = place < counts[:, None] + prompt
    ids = torch.where(place == 0, torch.arange(len(counts))[:, None], attention.long())
    return ids, attention.long(), (attention & (place >= prompt)).long()


def inputs(trainer: str, data: dict[str, Tensor], prompt: int) -> dict[str, Tensor]:
    """Return a batch as the collator of that trainer makes one."""
    ids, attention, completion = tokens_of(data, prompt)
    if trainer == "DPO":
        return {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}
    half = len(ids) // 2
    if trainer == "KTO":
        fields = {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}
        others = fields | {"input_ids": torch.cat([ids[:, :1] + len(ids), ids[:, 1:]], dim=1)}
        return {**fields, **{f"KL_{name}": value for name, value in others.items()}, "label": ids[:, 0] < half}
    labels = ids.masked_fill(completion == 0, -100)
    fields = {"input_ids": ids, "attention_mask": attention, "labels": labels}
    sides = {"chosen": slice(0, half), "rejected": slice(half, None)}
    return {f"{side}_{name}": value[part] for side, part in sides.items() for name, value in fields.items()}


@pytest.fixture(scope="module")
def build(tiny_model, tmp_path_factory):
    """Return a real trainer of TRL, built on a tiny model and one pair, by its name and options."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    pair = {"prompt": "one ", "chosen": "two", "rejected": "three"}
    unpaired = [{"prompt": "one ", "completion": text, "label": text == "two"} for text in ("two", "three")]

    def trainer(name: str, options: dict):
        home = importlib.import_module(HOMES[name])
        models = {"model": AutoModelForCausalLM.from_pretrained(tiny_model)}
        if name in ("DPO", "KTO"):
            models["ref_model"] = AutoModelForCausalLM.from_pretrained(tiny_model)
        folder = str(tmp_path_factory.mktemp("trl"))
        config = getattr(home, f"{name}Config")(folder, use_cpu=True, bf16=False, report_to=[], **options)
        data = Dataset.from_list(unpaired if name == "KTO" else [pair])
        return getattr(home, f"{name}Trainer")(args=config, train_dataset=data, processing_class=tokenizer, **models)

    return trainer


def mismatched(data: dict[str, Tensor]) -> Side:
    """Return log-probs that stand in for those of mismatched pairs: the recorded ones with the two models exchanged.

    DPO has lowered nearly every log-prob of these data. With the models exchanged, the mean log-ratio is above 0; KTO
    would clip a negative one to 0.
    """
    return Side(data["reference"], data["policy"])


def value_of_trl(trainer, name: str, data: dict[str, Tensor], policy: Tensor, setup: str) -> Tensor:
    """Return the loss that the trainer computes for a batch, differentiable in `policy`."""
    others = mismatched(data)
    model = Recorded(torch.cat([policy, others.policy]), setup)
    batch = inputs(name, data, prompt_length(setup))
    if name in ("DPO", "KTO"):
        trainer.ref_model = Recorded(torch.cat([data["reference"], others.reference]), setup)
        return trainer.compute_loss(model, batch)
    return trainer.get_batch_loss_metrics(model, batch)[0]


def value_of_ours(comparison: Counterpart, data: dict[str, Tensor], policy: Tensor) -> Tensor:
    sides = (*policy.chunk(2), *data["reference"].chunk(2))
    confidence = data["policy"] / data["tokens"] - log_squares(comparison.setup)
    fields = {
        f"{side}_{name}": value
        for name, values in {"tokens": data["tokens"], "confidence": confidence}.items()
        for side, value in zip(SIDES, values.chunk(2), strict=True)
    }
    batch = PreferenceBatch.from_logps(*sides, **fields, kl_pairs=mismatched(data), history=History())
    return get_loss(comparison.loss)(batch.with_stopped(), **comparison.settings).mean()


def batches(data: dict[str, Tensor], setup: str) -> list[dict[str, Tensor]]:
    """Return all pairs in batches of similar length, or the first ones singly, or those of moderate log-ratios."""
    pairs = torch.arange(len(data["policy"]) // 2)
    if setup in (ALONE, PROMPTS):
        parts = pairs[:PAIRS_ALONE].split(1)
    else:
        if setup == NEAR:
            pairs = pairs[((data["policy"] - data["reference"]).abs() < 30).view(2, -1).all(dim=0)]
        longest = data["tokens"].view(2, -1).max(dim=0).values
        parts = pairs[longest[pairs].argsort()].split(PAIRS_TOGETHER)
    return [
        {name: values[torch.cat([part, part + len(values) // 2])] for name, values in data.items()} for part in parts
    ]


def largest_difference(comparison: Counterpart, build, recorded) -> float:
    """Return the largest relative difference of value or gradient (the latter relative to its largest component)."""
    trainer = build(comparison.trainer, dict(comparison.options))
    # TRL's alpha divergence does not support fp64
    dtype = torch.float32 if "f_alpha_divergence_coef" in comparison.options else torch.float64
    worst = 0.0
    for data in batches({name: values.to(dtype) for name, values in recorded.items()}, comparison.setup):
        policy = data["policy"].clone().requires_grad_()
        values = (
            value_of_ours(comparison, data, policy),
            value_of_trl(trainer, comparison.trainer, data, policy, comparison.setup),
        )
        grads = [of_each_response(torch.autograd.grad(value, policy)[0], data["policy"]) for value in values]
        for ours, theirs in (values, grads):
            error = (ours - theirs).abs().max() / theirs.abs().max()
            worst = max(worst, math.inf if error.isnan() else error.item())
    return worst


def of_each_response(grad: Tensor, logps: Tensor) -> Tensor:
    """Return the gradient on each distinct log-prob, because the order of equal ones after a sort is not defined."""
    distinct, which = logps.unique(return_inverse=True)
    return torch.zeros_like(distinct).index_add(0, which, grad)


def named(comparison: Counterpart) -> str:
    return f"{comparison.loss}-{comparison.trainer}-{comparison.options.get('loss_type', '')}-{comparison.setup}"


@pytest.mark.slow
@pytest.mark.parametrize("comparison", [c for c in COUNTERPARTS if not c.differs], ids=named)
def test_agrees_in_value_and_gradient(comparison, build, recorded):
    assert largest_difference(comparison, build, recorded) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("comparison", [c for c in COUNTERPARTS if c.differs], ids=named)
def test_disagrees_for_the_reason_given(comparison, build, recorded):
    difference = largest_difference(comparison, build, recorded)
    assert difference > 100 * TOLERANCE
    assert math.isfinite(difference) or comparison.differs == TANGENT


def test_the_version_of_trl_is_the_one_that_the_docs_name():
    assert trl.__version__ == VERSION


def test_no_loss_of_trl_s_dpo_trainer_is_left_out(build, recorded):
    """TRL's error for an unknown name lists the names that it knows."""
    trainer, (data, *_) = build("DPO", {}), batches(recorded, ALONE)
    trainer.loss_types = ["none of them"]
    with pytest.raises(ValueError, match="Unknown loss type") as refused:
        value_of_trl(trainer, "DPO", data, data["policy"], ALONE)
    known = set(re.findall(r"'(\w+)'", str(refused.value)))
    compared = [c.options.get("loss_type") for c in COUNTERPARTS if c.trainer == "DPO"]
    assert known == {name for kinds in compared for name in ([kinds] if isinstance(kinds, str) else kinds)}
