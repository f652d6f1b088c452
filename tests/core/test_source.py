"""What a key sees of Python code: the same in every version of Python, with what the user's own files import."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import losses
from harness.core.hashing import hash_source, hash_value
from harness.core.source import code_of, sources_of

CODE = '''# -*- coding: utf-8 -*-
"""A docstring
of two lines."""
import math  # a comment


def loss(batch, *, beta: float = 0.1):
    """Another."""
    # what for
    name = f"{beta!r:>{len('ab')}} {{no}} {'a' 'b'} \\
x"
    text = "kept"
    if beta:

        return -math.log(1_000) * batch \\
            + 0x1F
    return f"""{
        beta
    }"""
'''


def test_the_hash_of_code_is_the_same_in_every_version_of_python(tmp_path):
    """The value was computed by Python 3.10, 3.11, 3.12 and 3.13."""
    (tmp_path / "loss.py").write_text(CODE)
    assert hash_value(code_of(tmp_path / "loss.py"))[:16] == "ccda43282c0fe7a7"


def hash_of(text: str | bytes, path: Path) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return hash_source(path)


@pytest.mark.parametrize(
    "same",
    [
        CODE.replace("A docstring", "Other words"),
        CODE.replace('    """Another."""\n', ""),
        CODE.replace("  # a comment", "") + "\n\n# the end",
        CODE.replace("    ", "  ").replace("  # what for\n", "\n\n"),
        CODE.replace("\n", "\r\n"),
        CODE.replace("-math.log(1_000) * batch", "- math . log( 1_000 )*batch"),
    ],
)
def test_comments_docstrings_and_layout_are_not_code(same, tmp_path):
    # the f-string over several lines is indented otherwise where the width of indentation differs
    if "\n  name" in same:
        same = same.replace('f"""{\n    beta\n  }"""', 'f"""{\n        beta\n    }"""')
    assert hash_of(same, tmp_path / "loss.py") == hash_of(CODE, tmp_path / "loss.py")


@pytest.mark.parametrize(
    "other",
    [
        CODE.replace("0.1", "0.2"),
        CODE.replace("kept", "lost"),
        CODE.replace("{{no}}", "{no}"),
        CODE.replace("!r", "!s"),
        CODE.replace("\n    return f", "\n        return f"),
        CODE.replace("    text =", "    "),
        CODE.replace('"""Another."""', 'f"""{beta.grad}"""'),
    ],
)
def test_all_else_is_code(other, tmp_path):
    assert hash_of(other, tmp_path / "loss.py") != hash_of(CODE, tmp_path / "loss.py")


def test_what_is_no_python_is_its_bytes(tmp_path):
    for text in ("def f(:", "x = (", b"\xff\xfe", "  x\n y\n"):
        assert hash_of(text, tmp_path / "a.py") != hash_of("x = 1", tmp_path / "a.py")


def write(folder: Path, **files: str) -> None:
    """Write files, named by their path with __ for a slash and without .py."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/').replace('INIT', '__init__')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names(folder: Path, start: str) -> set[str]:
    first, *others = sources_of(folder / start)
    assert first == (folder / start).resolve()
    return {str(path.relative_to(folder)) for path in others}


def test_a_plugin_s_helpers_are_found_beside_it_and_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(
        tmp_path,
        plugins__mine="import helper\nfrom torch import nn\nimport losses.dpo\nimport harness.core.store\n",
        plugins__helper="def f():\n    from shared import VALUE\n    import json, helper\n",
        shared="VALUE = 1\nimport importlib\nlate = importlib.import_module('late')\n",
        late="import mine, gone\n",
        unused="",
    )
    assert names(tmp_path, "plugins/mine.py") == {"plugins/helper.py", "shared.py", "late.py"}
    before = hash_source(tmp_path / "plugins/mine.py")
    write(tmp_path, unused="1 / 0")
    assert hash_source(tmp_path / "plugins/mine.py") == before
    write(tmp_path, late="import mine, gone\nVALUE = -100\n")
    assert hash_source(tmp_path / "plugins/mine.py") != before


@pytest.mark.parametrize(
    "statement",
    [
        "from . import words",
        "from .words import SCORE",
        "from .words import *",
        "from rewards.words import SCORE as score",
        "from rewards import words",
        "import rewards.words as w",
        "from ..rewards.words import SCORE",
        "import importlib\nimportlib.import_module('.words', __package__)",
        "__import__('rewards.words')",
    ],
)
@pytest.mark.parametrize("packages", [True, False], ids=["packages", "namespaces"])
def test_the_modules_of_a_package_are_found_with_what_makes_it_one(tmp_path, monkeypatch, statement, packages):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, rewards__gold=statement, rewards__words="SCORE = 1", rewards__other="", other="")
    if packages:
        write(tmp_path, rewards__INIT="from . import base", rewards__base="")
    made = {"rewards/__init__.py", "rewards/base.py"} if packages else set()
    package_runs = "rewards." in statement or "from rewards" in statement or statement == "from . import words"
    found = names(tmp_path, "rewards/gold.py")
    assert "rewards/words.py" in found and found - made == {"rewards/words.py"}
    assert not package_runs or statement.startswith("from .") or made <= found


def test_of_an_installed_package_its_own_modules_are_followed_and_no_other(tmp_path):
    site = tmp_path / "lib" / "site-packages"
    write(site, mine__INIT="", mine__loss="import numpy, mine.parts.deep\n", mine__parts__INIT="", numpy__INIT="")
    write(site, mine__parts__deep="from . import near\nimport single", mine__parts__near="", single="import numpy")
    found = {str(path.relative_to(site)) for path in sources_of(site / "mine/loss.py")}
    assert found == {f"mine/{name}.py" for name in ("loss", "__init__", "parts/__init__", "parts/deep", "parts/near")}
    assert [path.name for path in sources_of(site / "single.py")] == ["single.py"]


def test_a_folder_that_a_plugin_adds_to_the_path_is_searched_too(tmp_path, monkeypatch):
    write(tmp_path, mine="import sys, os\nimport inner\n", lib__inner="")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "lib")])
    assert names(tmp_path, "mine.py") == {"lib/inner.py"}


def test_a_file_of_this_project_stands_for_itself():
    dpo = Path(losses.__file__).parent / "dpo.py"
    assert sources_of(dpo) == [dpo.resolve()]
