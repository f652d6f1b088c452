"""Which rooms import which, read from the imports of the source files. Imports inside functions count too."""

from __future__ import annotations

import ast
import subprocess
import sys
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
    """Return the project's modules that a file imports. `from package import module` is an import of the module."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= inside if inside <= MODULES.keys() else inside | {node.module}
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    return {name for name in imported if name in MODULES}


IMPORTS = {name: imports_of(path) - {name} for name, path in MODULES.items()}


def test_no_files_import_each_other_in_a_circle():
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        raise AssertionError("files that import each other: " + " -> ".join(error.args[1])) from None


# The lowest storey comes first. A room may import the rooms of lower storeys, but none of its own storey.
STOREYS = [
    ["losses"],
    ["harness.core"],
    ["harness.tasks", "harness.training"],
    ["harness.evaluation", "harness.backbones"],
    ["harness.experiment", "harness.reporting", "harness.conformance"],
    ["harness.run"],
    ["harness.cli"],
    ["harness.__main__"],
]
STOREY = {room: number for number, rooms in enumerate(STOREYS) for room in rooms}


def room_of(module: str) -> str | None:
    """Return the room of a module, or None for the package `harness` itself."""
    return next((room for room in STOREY if module == room or module.startswith(f"{room}.")), None)


def test_every_file_lies_in_a_room():
    assert [name for name in MODULES if room_of(name) is None] == ["harness"]


def test_a_room_imports_only_rooms_below_it():
    wrong = {
        (room_of(name), room_of(other))
        for name, others in IMPORTS.items()
        for other in others
        if room_of(name) != room_of(other) and STOREY[room_of(name)] <= STOREY[room_of(other)]
    }
    assert wrong == set()


WITHOUT_TORCH = """
import sys
import harness.cli.main
import harness.reporting.report
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""


def test_reporting_and_the_command_line_load_no_torch():
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True, cwd=REPOSITORY)


WITHOUT_PANDAS = """
import sys
import harness.cli.main
import harness.reporting.cell_facts
import harness.reporting.find_cell
import harness.reporting.status
import harness.reporting.verify
assert "pandas" not in sys.modules
"""


def test_status_verify_and_show_load_no_pandas():
    subprocess.run([sys.executable, "-c", WITHOUT_PANDAS], check=True, cwd=REPOSITORY)
