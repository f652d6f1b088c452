"""Loads the user's own losses, tasks and judges from Python files that an experiment names and from packages."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.core.errors import UserError
from harness.core.hashing import hash_value
from harness.core.terminal import complain
from harness.core.user_code import user_code
from losses import get_loss, list_losses
from losses.spec import LOSSES

# Groups of entry points. Loading one registers everything it holds; the group tells readers what a package offers.
ENTRY_POINTS = ("harness.losses", "harness.judges", "harness.tasks")


def load_plugins(files: Sequence[str]) -> None:
    """Import the plugin files and the modules that installed packages declare as entry points, so that they register.

    Paths are relative to the working directory. An error in a file is raised as a `UserError` that names the file. A
    package whose entry point cannot be loaded is left out with a warning: it may have nothing to do with the command.
    """
    for file in files:
        path = Path(os.path.expanduser(file)).resolve()
        if not path.is_file():
            raise UserError(f"plugin file {file} does not exist (looked in {Path.cwd()})")
        name = f"harness_plugin_{path.stem}_{hash_value(str(path))[:8]}"  # two files may have one name
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise UserError(f"plugin {file} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        with user_code(f"plugin {file}", name):
            spec.loader.exec_module(module)
    for group in ENTRY_POINTS:
        for point in importlib.metadata.entry_points(group=group):
            try:
                with user_code(f"entry point {point.name} of {group} ({point.value})", point.module):
                    point.load()
            except UserError as error:
                complain(f"warning: {error}; it is left out")


def losses_of(target: str) -> list[str]:
    """Return the losses that a registered name or a loaded plugin file stands for.

    Raises `UserError` for a file that registers no loss, `RegistryError` for an unknown name.
    """
    if not target.endswith(".py"):
        return [get_loss(target).name]
    path = str(Path(os.path.expanduser(target)).resolve())
    names = [name for name in list_losses() if LOSSES.origin(name).rpartition(":")[0] == path]
    if not names:
        raise UserError(f"{target} registers no loss; see @register_loss in docs/your-own-loss.md")
    return names
