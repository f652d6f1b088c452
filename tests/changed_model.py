"""A copy of a model folder that is not as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


def changed(folder: Path, to: Path, tensors: Callable[[dict], Mapping[str, Tensor]] = dict, **settings) -> Path:
    """Copy a model folder with other tensors and settings."""
    shutil.copytree(folder, to)
    weights = to / "model.safetensors"
    save_file(dict(tensors(load_file(weights))), weights, metadata={"format": "pt"})
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **settings}))
    return to
