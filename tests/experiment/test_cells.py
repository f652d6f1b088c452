"""What a cell's key is made of."""

from pathlib import Path

import losses
from harness.core.hashing import hash_source
from harness.experiment.cells import loss_sources
from losses import get_loss, register_weighting

FOLDER = Path(losses.__file__).parent


def test_a_cell_s_key_holds_the_source_of_every_part_of_its_loss():
    dpo, modifiers, batch = (hash_source(FOLDER / name) for name in ("dpo.py", "modifiers.py", "batch.py"))
    assert loss_sources(get_loss("dpo"), {"beta": 0.1}) == [dpo, batch]
    assert set(loss_sources(get_loss("dpo+nll"), {})) == {dpo, modifiers, batch}


def test_a_weighting_of_the_user_s_own_is_part_of_the_key():
    @register_weighting("test_only")
    def test_only(batch, temperature):
        """Never called."""

    rpo = get_loss("rpo")
    assert loss_sources(rpo, rpo.settings({"weighting": "test_only"})) == [
        hash_source(FOLDER / "rpo.py"),
        hash_source(FOLDER / "batch.py"),
        hash_source(Path(__file__)),
    ]
