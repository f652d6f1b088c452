"""What a cell's key is made of."""

from pathlib import Path

import losses
from harness.backbones.language_model.needs import SUPPLIERS
from harness.backbones.language_model.tokens import PreparedTask, TokenSplit
from harness.core.config import ExperimentConfig, ModelConfig
from harness.core.encoder import MAX_PIECES
from harness.core.hashing import hash_source
from harness.experiment.cells import PlannedTask, loss_files, start_inputs
from harness.experiment.plugins import load_plugins
from harness.tasks import TASKS
from harness.training.supply import KeyInputs, supplier_of
from losses import get_loss, register_loss, register_need, register_weighting
from losses.needs import NEEDS
from tests.planned import plan_of
from tests.tiny_experiment import write_experiment

FOLDER = Path(losses.__file__).parent


def test_a_cell_s_key_holds_the_source_of_every_part_of_its_loss():
    dpo, modifiers, batch = (FOLDER / name for name in ("dpo.py", "modifiers.py", "batch.py"))
    assert loss_files(get_loss("dpo"), {"beta": 0.1}) == [dpo, batch]
    assert set(loss_files(get_loss("dpo+nll"), {})) == {dpo, modifiers, batch}


def test_a_weighting_of_the_user_s_own_is_part_of_the_key():
    @register_weighting("test_only")
    def test_only(batch, temperature):
        """Never called."""

    rpo = get_loss("rpo")
    assert loss_files(rpo, rpo.settings({"weighting": "test_only"})) == [
        FOLDER / "rpo.py",
        FOLDER / "batch.py",
        Path(__file__),
    ]


def test_the_modules_that_a_plugin_imports_are_part_of_the_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "constants_of_mine.py").write_text("SCALE = 1.0\n")
    (tmp_path / "loss_of_mine.py").write_text(
        "from constants_of_mine import SCALE\nfrom losses import register_loss\n\n\n"
        "@register_loss('test_only')\ndef test_only(batch, *, beta: float = 0.1):\n"
        "    return -SCALE * beta * batch.logratio_margin\n"
    )
    load_plugins(["loss_of_mine.py"])
    first, *_ = loss_files(get_loss("test_only"), {"beta": 0.1})
    before = hash_source(first)
    (tmp_path / "constants_of_mine.py").write_text("SCALE = 1.0  # the same\n")
    assert hash_source(first) == before
    (tmp_path / "constants_of_mine.py").write_text("SCALE = -100.0\n")
    assert hash_source(first) != before


def test_a_need_of_the_user_s_own_is_part_of_the_key():
    @register_need("test_only")
    def test_only(split):
        """Never called."""

    @register_loss("reads_it", needs=["reference", "test_only"])
    def reads_it(batch):
        """Never called."""

    own, batch = Path(__file__), FOLDER / "batch.py"
    assert loss_files(get_loss("reads_it"), {}) == [own, own, batch]
    inputs = KeyInputs("of prompts", lambda: "of encoder", "of second")
    assert supplier_of("test_only", SUPPLIERS).key(inputs) == "of prompts"


def test_a_need_brings_its_part_of_the_key():
    inputs = KeyInputs("of prompts", lambda: "of encoder", "of second")
    embedded = {"encoder": "of encoder", "pieces": MAX_PIECES, "prompts": "of prompts"}
    parts = {need: supplier_of(need, SUPPLIERS).key(inputs) for need in NEEDS}
    expected = {"prompt_embeddings": embedded, "density_ratios": embedded, "second_reference": "of second"}
    assert parts == dict.fromkeys(NEEDS) | expected


def start(asked: float, **rates: float) -> dict:
    """The inputs of an SFT policy's key for a model whose configuration has these rates of dropout."""
    experiment = ExperimentConfig(model=ModelConfig(dropout=asked))
    split = TokenSplit([], [])
    planned = PlannedTask("hh", TASKS.get("hh"), PreparedTask({"train": split}, {}, [], [], "", {}), "")
    return start_inputs(experiment, "of model", rates, planned)


def test_dropout_is_part_of_the_key_only_where_it_is_not_the_model_s_own():
    """A model without dropout has the key that it always had; GPT-2 without its dropout is another policy."""
    plain = start(0.0)
    assert "dropout" not in plain
    assert start(0.0, attention_dropout=0.0) == plain
    assert "dropout" not in start(0.1, resid_pdrop=0.1, attn_pdrop=0.1)
    assert start(0.0, resid_pdrop=0.1, attn_pdrop=0.1) == {**plain, "dropout": 0.0}
    assert start(0.1, dropout=0.1, attention_dropout=0.0)["dropout"] == 0.1


def test_how_dropout_is_seeded_is_part_of_the_key_only_where_there_is_dropout(tmp_path, tiny_model, tiny_encoder):
    path = write_experiment(tmp_path, tiny_model, tiny_encoder, losses={"dpo": {}})

    def start(*overrides: str) -> dict:
        return plan_of(path, *overrides).starts["hh"]

    assert "randomness" not in start() | start("model.tune=lora")
    assert start("model.tune=lora", "model.lora.dropout=0.1")["randomness"] == "seeded by step"
    assert start("model.tune=full", "model.dropout=0.1")["randomness"] == "seeded by step"
