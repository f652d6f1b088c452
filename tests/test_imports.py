"""The walls between rooms, as the imports of the source files show them. Imports inside functions count too."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.conftest import REPOSITORY

ROOTS = ("harness", "losses")


def module_name(path: Path) -> str:
    """`harness/tasks/base.py` as `harness.tasks.base`; a package's `__init__.py` as the package."""
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for root in ROOTS for path in (REPOSITORY / root).rglob("*.py")}


def imports_of(path: Path) -> set[str]:
    """The modules of ours that a file imports. `from package import module` is an import of the module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside if inside <= MODULES.keys() else inside | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in MODULES}


IMPORTS = {name: imports_of(path) - {name} for name, path in MODULES.items()}


def test_no_files_import_each_other_in_a_circle():
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        raise AssertionError("files that import each other: " + " -> ".join(error.args[1])) from None
