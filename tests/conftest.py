"""Fixtures of the whole suite: a tiny model built from a config, with a tokenizer trained on shipped text."""

from __future__ import annotations

import gzip
import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may lean on a model hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Tiny models gain nothing from threads, and threads that wait for each other cost a great deal.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent
# Where the suite runs in several processes, the tests of a group run in one of them, one after the other: those that
# use all cores or measure time or memory, and those that share what takes seconds to make.
GROUPS = {
    "tests/benchmarks/": "all cores",
    "tests/evaluation/judges/test_transformers_server.py": "all cores",
    "tests/experiments/test_demo.py": "all cores",
    "tests/run/test_processes.py": "all cores",
    "tests/training/test_layout.py::test_two_processes": "all cores",
    "tests/training/test_layout.py::test_so_do_two": "all cores",
    "tests/conformance/test_trl.py": "trainers of TRL",
    "tests/cli/test_export.py": "exported policies",
    "tests/cli/test_show.py": "a run with a failure",
    "tests/cli/test_status.py": "a run with a failure",
    "tests/docs/test_docs.py": "the docs' package",
    "tests/docs/test_inspect.py": "an inspected run",
    "tests/reporting/": "a written report",
    "tests/run/test_plan_file.py": "plans",
    "tests/run/test_runner.py": "a finished run",
    "tests/run/test_sentiment.py": "a controlled run",
    "tests/training/test_checkpoint.py": "an interrupted run",
}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _undone():
    """What is registered meanwhile, by a test or by a plugin that it loads, is gone afterwards."""
    import harness.evaluation.judges  # noqa: F401 (what is built in is there before and after)
    import losses.catalogue  # noqa: F401
    from harness.evaluation.base import JUDGES
    from harness.tasks import TASKS
    from harness.tasks.rewards.base import REWARDS
    from losses.modifiers import MODIFIERS
    from losses.needs import NEEDS
    from losses.rpo import WEIGHTINGS
    from losses.spec import LOSSES

    registries = (JUDGES, LOSSES, MODIFIERS, NEEDS, REWARDS, TASKS, WEIGHTINGS)
    before = [(dict(registry._entries), dict(registry._origins)) for registry in registries]
    yield
    for registry, (entries, origins) in zip(registries, before, strict=True):
        registry._entries, registry._origins = entries, origins


registrations_of_a_module = pytest.fixture(_undone, scope="module", autouse=True)
registrations_of_a_test = pytest.fixture(_undone, autouse=True)
registrations_undone = contextmanager(_undone)  # for a fixture of the session, which is set up before those two


def group_of(nodeid: str) -> str:
    """Return the name of a test's group, or its own where it is in none."""
    return next((group for start, group in GROUPS.items() if nodeid.startswith(start)), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep groups together.

    The marks that pytest-xdist 3.8 has for it (`xdist_group`) are without effect in pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByGroup(config, log)


def build_tiny_model(folder: Path, *, layers: int = 3, hidden: int = 32, vocabulary: int = 600, seed: int = 0) -> Path:
    """Write a Llama of a few thousand parameters with a byte-level BPE tokenizer and a chat template."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    with gzip.open(REPOSITORY / "harness/tasks/data/hh.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["chosen"] for _, line in zip(range(200), file, strict=False)]
    bpe = ByteLevelBPETokenizer()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe.train_from_iterator(texts, vocab_size=vocabulary, special_tokens=specials, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """The folder of a tiny causal LM."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> Path:
    """The folder of a tiny sentence encoder."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-encoder")
    with gzip.open(REPOSITORY / "harness/tasks/data/hh.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["chosen"] for _, line in zip(range(200), file, strict=False)]
    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(texts, vocab_size=500, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces._tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
