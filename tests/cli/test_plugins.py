"""A user's own file of losses, named by --plugin or in an experiment."""

from __future__ import annotations

import json

import pytest

from harness.cli.main import main


def test_a_plugin_that_is_missing_or_broken(refuses, tmp_path):
    assert "plugin file nowhere.py does not exist" in refuses(plugins=["nowhere.py"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nx.y\n", "AttributeError: 'int' object has no attribute 'y' ({}:2)"),
        ("\nraise ValueError('one\\ntwo\\n\\nthree')\n", "ValueError: one two three ({}:2)"),
        ("import json\n\njson.loads('[')\n", "JSONDecodeError: Expecting value: line 1 column 2 (char 1) ({}:3)"),
        ("x = 1\n\ndef f():\n    y = = 2\n", "SyntaxError: invalid syntax ({}:4)"),
        (
            "def f():\nx = 1\n",
            "IndentationError: expected an indented block after function definition on line 1 ({}:2)",
        ),
        ("x = 1\nexec('y = = 2')\n", "SyntaxError: invalid syntax ({}:2)"),
        ("x = 1\nimport broken_by_syntax\n", "SyntaxError: invalid syntax ({}:3)"),
        ("import sys\n\nsys.exit(0)\n", "SystemExit: 0 ({}:3)"),
        ("import sys\nx = 1\nsys.exit('error: all\\nfine')\n", "SystemExit: error: all fine ({}:3)"),
        ("class Stop(BaseException):\n    pass\n\nraise Stop\n", "Stop: ({}:4)"),
        (
            "x = 1\n\ndef f():\n\treturn 1\n        return 2\n",
            "TabError: inconsistent use of tabs and spaces in indentation ({}:5)",
        ),
    ],
)
def test_an_error_in_a_plugin_names_the_user_s_line(refuses, tmp_path, monkeypatch, text, message):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_by_syntax.py").write_text("x = 1\ny = 2\nz = = 3\n")
    file = tmp_path / "broken.py"
    file.write_text(text)
    where = tmp_path / "broken_by_syntax.py" if "import broken" in text else file
    assert f"broken.py: {message.format(where)}\n" in refuses(plugins=[str(file)])


def test_two_plugins_with_one_file_name_are_two_modules(tmp_path, capsys):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "loss.py").write_text(
            f'from losses import register_loss\n\n@register_loss("{name}")\ndef loss(batch):\n    return 0\n'
        )
    plugins = [f"--plugin={tmp_path / name / 'loss.py'}" for name in ("first", "second")]
    assert main(["losses", "--json", *plugins]) == 0
    assert {"first", "second"} <= {loss["name"] for loss in json.loads(capsys.readouterr().out)}


def test_what_a_plugin_prints_is_not_in_the_output(tmp_path, capsys):
    (tmp_path / "prints.py").write_text("print('hello')\n")
    assert main(["losses", "--json", f"--plugin={tmp_path / 'prints.py'}"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) and captured.err == "hello\n"


def test_a_plugin_that_takes_the_name_of_another_loss(refuses, tmp_path):
    (tmp_path / "thief.py").write_text(
        "from losses import register_loss\n\n"
        '@register_loss("dpo")\n'
        "def dpo(batch, *, beta: float = 0.1):\n"
        "    return batch.logratio_margin\n"
    )
    message = refuses(plugins=[str(tmp_path / "thief.py")])
    assert "the loss 'dpo' is registered twice" in message and "thief.py:3" in message and "losses/dpo.py" in message
