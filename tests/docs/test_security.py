"""Each statement of docs/security.md holds. Those with tests elsewhere are named in `ELSEWHERE`."""

from __future__ import annotations

import json
import re
import socket

import pytest
import yaml

from harness.core import bounded
from harness.core.assets import model_folder
from harness.core.config import ModelConfig
from harness.core.errors import UserError
from harness.core.secrets import SECRET_NAMES, SHORTEST_SECRET
from harness.experiment.file import load_experiment
from harness.experiment.plugins import ENTRY_POINTS
from tests.conftest import REPOSITORY
from tests.tiny_experiment import run, write_experiment

PAGE = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")
WORDS = " ".join(PAGE.split())
# Statement: the file of its test, and the test.
ELSEWHERE = {
    "An error with its file and line": ("tests/cli/test_plugins.py", "test_an_error_in_a_plugin_names_the_user_s_line"),
    "fails its own cell or judgement": ("tests/run/test_cell.py", "test_code_that_calls_sys_exit_fails_its_own_cell"),
    "16 MiB for a line or a row": ("tests/tasks/test_sources.py", "test_a_line_has_a_size_limit"),
    "200 times its own size": ("tests/tasks/test_sources.py", "test_a_small_file_that_unpacks_to_much"),
    "10,000 nodes": ("tests/experiment/test_file.py", "test_aliases_that_expand_to_more_than_memory"),
    "are spelled out, and an error is one line": ("tests/core/test_terminal.py", "test_a_line_is_one_line_whatever"),
    "would run as a formula": ("tests/reporting/test_tables.py", "test_no_text_is_a_formula_in_a_spreadsheet"),
    "the owner alone (0600)": (
        "tests/evaluation/judges/test_openai_answers.py",
        "test_answers_are_their_owner_s_alone",
    ),
    "no markup, no HTML": ("tests/reporting/test_tables.py", "test_what_others_wrote_is_no_markup"),
    "are refused in every setting but `key_env`": ("tests/experiment/test_file.py", "test_the_environment_is_not_read"),
    "(eight characters or more) is refused": ("tests/experiment/test_file.py", "test_a_secret_among_the_settings"),
    "In printed lines, tracebacks": ("tests/core/test_terminal.py", "test_secrets_of_the_environment_are_masked"),
    "failures, `manifest.json`": ("tests/run/test_cell.py", "test_a_failure_holds_no_secret"),
}


@pytest.mark.parametrize("statement", ELSEWHERE)
def test_a_statement_has_the_test_that_is_named(statement):
    file, test = ELSEWHERE[statement]
    assert statement.lower() in WORDS.lower()
    assert f"def {test}" in (REPOSITORY / file).read_text(encoding="utf-8")


def test_the_page_is_linked_and_its_numbers_are_those_of_the_code():
    assert "(docs/security.md)" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert (bounded.LONGEST_ROW, bounded.LARGEST_FILE, bounded.FREE) == (16 * 2**20, 2**30, 64 * 2**20)
    assert bounded.RATIO == 200 and SHORTEST_SECRET == 8
    for word in re.findall("[A-Z]{3,}", SECRET_NAMES.pattern.replace("BOARD", "").replace("TOKEN(?!IZ)", "TOKEN")):
        assert word in PAGE
    for group in ENTRY_POINTS:
        assert f"`{group}`" in PAGE
    assert not ModelConfig().trust_remote_code


def test_an_experiment_file_makes_no_python_objects(tmp_path):
    path = tmp_path / "example.yaml"
    for tag in ("python/object/apply:os.system ['touch made']", "python/name:os.system", "python/tuple [1]"):
        path.write_text(f"tasks: {{hh: {{}}}}\nlosses: {{dpo: {{}}}}\nname: !!{tag}\n")
        with pytest.raises(UserError, match="not valid YAML"):
            load_experiment(path)
    assert not (tmp_path / "made").exists()


def test_pickled_weights_are_not_loaded(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(UserError, match="pickled weights are not loaded"):
        model_folder(str(tmp_path))


@pytest.mark.slow
def test_a_run_on_local_files_opens_no_connection_and_writes_no_secret(tmp_path, tiny_model, tiny_encoder, monkeypatch):
    """A gold judge is local. The variable's value is in no file of the results, nor is any other variable's."""

    def connect(self, address):
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setenv("A_SECRET_KEY", "s3cr3t-0123456789")
    monkeypatch.setenv("AN_ORDINARY_VARIABLE", "ordinary-0123456789")
    path = write_experiment(tmp_path, tiny_model, tiny_encoder, losses={"dpo": {}})
    assert run(path) == 0
    for file in (tmp_path / "results").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert b"s3cr3t-0123456789" not in content and b"ordinary-0123456789" not in content, file
    manifest = json.loads((tmp_path / "results" / "tiny" / "manifest.json").read_text())
    written = yaml.safe_load(path.read_text())
    assert manifest["config"]["model"]["name"] == written["model"]["name"], "paths are as they were written"
