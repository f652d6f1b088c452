"""The command `losses`: what is listed of each loss."""

from __future__ import annotations

import io
import json

from rich.console import Console

from harness.cli.main import main
from harness.conformance.catalogue import losses_table
from losses import list_losses

BUILT_IN = list_losses()  # at collection, nothing else is registered yet


def test_losses_are_listed_with_what_they_declare(capsys):
    assert main(["losses", "--json"]) == 0
    listed = {loss["name"]: loss for loss in json.loads(capsys.readouterr().out)}
    assert listed["rpo_paired"]["paper"] == "2402.10958"
    assert listed["rpo_paired"]["needs"] == ["prompt_embeddings", "reference"]
    assert listed["rpo_paired"]["hyperparameters"]["temperature"] == {
        "type": "float",
        "bounds": "above 0",
        "default": 0.5,
        "grid": [0.25, 0.5, 0.75],
    }
    assert listed["ipo"]["reduction"] == "mean" and listed["ipo_sum"]["reduction"] == "sum"
    assert listed["rpo_unpaired"]["data"] == "unpaired"


def test_the_table_of_losses_names_every_loss(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["losses"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name in ("dpo", "ipo", "ipo_sum", "rpo_paired", "rpo_unpaired", "rpo_uniform", "rpo_diagonal", "2402.10958"):
        assert name in out


def test_a_user_s_losses_are_listed_too(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "from losses import register_loss\n\n"
        '@register_loss("mine", grid={"beta": [1.0]})\n'
        "def mine(batch, *, beta: float = 1.0):\n"
        '    """Mine."""\n'
        "    return -beta * batch.logratio_margin\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["losses", "--plugin", "mine.py", "--json"]) == 0
    assert [loss["name"] for loss in json.loads(capsys.readouterr().out)][-1] == "mine"


def test_the_table_of_losses_breaks_no_word_at_80_columns():
    console = Console(width=80, record=True, file=io.StringIO())
    with console.capture() as captured:
        console.print(losses_table())
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    words = {word for line in lines for word in line.split()}
    assert {"hyper-parameters:", "reduction", "prompt_embeddings", "undesirable_weight:", *BUILT_IN} <= words
