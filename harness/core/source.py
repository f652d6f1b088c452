"""Python source as keys see it: the code of a file, and which files of the user's own it imports.

Code is a file's tokens without comments and docstrings; they are the same in every version of Python, unlike what
`ast.dump` returns. Imports are read from the code, without running it.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import sysconfig
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

PROJECT = [Path(__file__).resolve().parents[2] / name for name in ("harness", "losses")]
LIBRARY = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
DROPPED = {tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER}
LAYOUT = {tokenize.NEWLINE: "\n", tokenize.INDENT: "\n>", tokenize.DEDENT: "\n<"}  # no token is spelt like these
TEXT = re.compile("[rbu]{0,2}['\"]", re.IGNORECASE)  # the beginning of a literal that computes nothing


def code_of(path: Path) -> list[str]:
    """Return the tokens of a Python file without comments, docstrings, blank lines and the width of indentation.

    A file that is not Python is one token: its bytes in hexadecimal.
    """
    try:
        with tokenize.open(path) as file:
            return list(_without_docstrings(_tokens(file.read())))
    except (SyntaxError, UnicodeDecodeError, tokenize.TokenError):
        return [path.read_bytes().hex()]


def sources_of(path: Path) -> list[Path]:
    """Return a Python file and, after it, the user's own files that it imports, directly or through one another.

    These are found in its package, in the folder that it or its package is in, and in the working directory. Nothing
    that is installed or part of this project is among them, and of a file of this project only that file is returned.
    """
    path = Path(path).resolve()
    found = [path]
    if not is_of_project(path):
        own = _outermost(path)
        for file in found:
            found += [other for other in dict.fromkeys(_imported(file, own)) if other not in found]
    return found


def is_of_project(path: Path) -> bool:
    """Whether a file is part of this project, whose versions are told by other means than a hash of all its code."""
    return _inside(Path(path).resolve(), PROJECT)


def _tokens(text: str) -> Iterator[str]:
    """Yield tokens. An f-string is one token, as it was before Python 3.12."""
    lines, depth, start = list(io.StringIO(text)), 0, (0, 0)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        if kind in ("FSTRING_START", "TSTRING_START"):
            start = start if depth else token.start
            depth += 1
        elif kind in ("FSTRING_END", "TSTRING_END"):
            depth -= 1
            if not depth:
                yield _between(lines, start, token.end)
        elif not depth and token.type not in DROPPED:
            yield LAYOUT.get(token.type, token.string)


def _between(lines: Sequence[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    rows = list(lines[start[0] - 1 : end[0]])
    rows[-1] = rows[-1][: end[1]]
    rows[0] = rows[0][start[1] :]
    return "".join(rows)


def _without_docstrings(tokens: Iterator[str]) -> Iterator[str]:
    """Yield tokens without the statements that are nothing but a text."""
    statement: list[str] = []
    for token in tokens:
        statement.append(token)
        if token in LAYOUT.values():
            if len(statement) == 1 or not all(map(TEXT.match, statement[:-1])):
                yield from statement
            statement = []
    yield from statement


def _imported(file: Path, own: Path) -> Iterator[Path]:
    """Yield the user's own files that a file imports; `own` is the package or file that the search began with."""
    here = [own.parent, file.parent, Path.cwd()]
    roots = here + [entry for entry in map(Path, sys.path) if _inside(entry.resolve(), [own.parent])]
    for level, name in _names(file):
        for root in file.parents[level - 1 : level] if level else dict.fromkeys(roots):
            for other in _files(root, name):
                if _inside(other, [own]) or not (_inside(other, PROJECT + LIBRARY) or _is_installed(other)):
                    yield other


def _names(file: Path) -> Iterator[tuple[int, str]]:
    """Yield what a file imports: the number of leading dots, and the dotted name, whose last part may be no module."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, f"{node.module or ''}.{alias.name}".strip(".")) for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node.func) in ("import_module", "__import__"):
            for name in [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]:
                yield len(name) - len(name.lstrip(".")), name.lstrip(".")


def _called(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def _files(root: Path, name: str) -> Iterator[Path]:
    """Yield the files that the import of a dotted name from a folder runs: those of its packages, and its own."""
    place = root
    for part in name.split("."):
        if not part.isidentifier():
            return
        place /= part
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                yield file.resolve()


def _outermost(file: Path) -> Path:
    """Return the folder of the outermost package that a file is in; the file itself if it is in none."""
    top = file
    while (top.parent / "__init__.py").is_file():
        top = top.parent
    return top


def _is_installed(file: Path) -> bool:
    return bool({"site-packages", "dist-packages"} & set(file.parts))


def _inside(file: Path, folders: Sequence[Path]) -> bool:
    return any(folder in (file, *file.parents) for folder in folders)
