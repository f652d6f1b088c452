"""A model from the hub: what is downloaded, and that its own Python code runs only where that is asked for."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.core.assets import weights_hash
from tests.conftest import REPOSITORY
from tests.hub import served
from tests.tiny_experiment import write_experiment

CONFIGURATION = """
from transformers import LlamaConfig


class OwnConfig(LlamaConfig):
    model_type = "own"
"""
MODEL = """
from transformers import LlamaForCausalLM

from .configuration_own import OwnConfig


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(tmp_path, tiny_model):
    """A model of an architecture that transformers does not know, with its code, as a folder of a hub."""
    folder = shutil.copytree(tiny_model, tmp_path / "hub" / "someone" / "own")
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": names}))
    (folder / "configuration_own.py").write_text(CONFIGURATION)
    (folder / "modeling_own.py").write_text(MODEL)
    return folder


@pytest.fixture
def hub(tmp_path):
    """The environment of a process that uses the folder `hub` as a model hub."""
    with served(tmp_path) as environment:
        yield {**environment, "PYTHONPATH": str(REPOSITORY)}


def plan(path: Path, environment, trusts: bool) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "harness", "plan", str(path), f"model.trust_remote_code={trusts}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_hub_model_s_own_code_is_downloaded_and_run_only_on_request(own_code, hub, tmp_path, tiny_encoder):
    path = write_experiment(tmp_path, Path("someone/own"), tiny_encoder, model={"name": "someone/own"})
    refused = plan(path, hub, trusts=False)
    assert refused.returncode == 2 and refused.stderr.splitlines()[-1].startswith("error: model in ")
    assert "needs its own Python code; model.trust_remote_code=true" in refused.stderr
    assert list((tmp_path / "cache").rglob("*.json")) and not list((tmp_path / "cache").rglob("*own.py"))
    allowed = plan(path, hub, trusts=True)
    assert allowed.returncode == 0, allowed.stderr
    assert "5 cells" in allowed.stdout and list((tmp_path / "cache").rglob("modeling_own.py"))


def test_whether_a_folder_s_code_runs_is_part_of_its_content(own_code, tiny_model):
    assert weights_hash(own_code) != weights_hash(own_code, code=True)
    assert weights_hash(tiny_model) == weights_hash(tiny_model, code=True), "there is none to run"
    before = weights_hash(own_code, code=True)
    (own_code / "modeling_own.py").write_text(MODEL + "\n# changed\n")
    assert weights_hash(own_code, code=True) != before
