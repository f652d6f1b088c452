"""What reaches the terminal: no control characters, no forged lines, no markup and no secrets, from one place."""

import ast
import io
import os
import warnings
from pathlib import Path

import pytest
from rich.table import Table

import harness
from harness.core.terminal import Terminal, complain, show_traceback, visible, warning_line

HOSTILE = "a\x1b[2J\x1b]0;title\x07\u202eb\nerror: all fine\r\x9b1mc [bold]d[/bold] :smile:"
CLEAN = r"a\x1b[2J\x1b]0;title\x07\u202eb\nerror: all fine\r\x9b1mc [bold]d[/bold] :smile:"


@pytest.fixture(params=[False, True], ids=["piped", "on a terminal"])
def terminal(request):
    return Terminal(file=io.StringIO(), width=400, force_terminal=request.param, color_system=None)


def test_a_line_is_one_line_whatever_it_holds(terminal):
    terminal.say(f"  {HOSTILE}")
    assert terminal.file.getvalue() == f"  {CLEAN}\n"


def test_a_line_is_not_wrapped():
    terminal = Terminal(file=io.StringIO(), width=20)
    terminal.say("word " * 50)
    assert terminal.file.getvalue().count("\n") == 1


def test_cells_titles_and_notes_of_a_table_are_cleaned(terminal):
    table = Table(title=HOSTILE, caption=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    terminal.print(table)
    printed = terminal.file.getvalue()
    assert all(c.isprintable() or c == "\n" for c in printed)
    assert printed.count("[bold]d[/bold] :smile:") == 4


def test_text_of_several_lines_stays_as_it_is(terminal):
    terminal.lines('{\n  "a": "[b]",\n  "c": "  d"\n}')
    assert terminal.file.getvalue() == '{\n  "a": "[b]",\n  "c": "  d"\n}\n'


def test_what_is_not_a_terminal_has_a_least_width():
    assert Terminal(file=io.StringIO(), width=80, piped_width=120).width == 120
    assert Terminal(file=io.StringIO(), width=80, piped_width=120, force_terminal=True).width == 80


def test_an_error_is_one_line(capsys):
    complain(f"error: {HOSTILE}")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("error: a [2J ]0;title b error: all fine")
    assert said.rstrip("\n").isprintable()


def test_the_message_of_a_traceback_is_one_line(capsys):
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        show_traceback(error)
    *stack, last = capsys.readouterr().err.splitlines()
    assert stack[0] == "Traceback (most recent call last):" and last.startswith("ValueError: a [2J")
    assert all(line.isprintable() for line in (*stack, last)) and "error: all fine" not in stack


def test_a_warning_is_one_line():
    text = warning_line(UserWarning(HOSTILE), UserWarning, "file.py", 3)
    assert text.startswith("warning: a [2J") and text.count("\n") == 1
    assert warnings.formatwarning.__code__.co_argcount == warning_line.__code__.co_argcount


def test_secrets_of_the_environment_are_masked_wherever_something_is_printed(monkeypatch, capsys):
    monkeypatch.setenv("SOME_API_KEY", "sk-0123456789")
    terminal = Terminal(file=io.StringIO(), width=100)
    terminal.say("the key is sk-0123456789")
    terminal.lines('{"key": "sk-0123456789"}')
    table = Table("a")
    table.add_row("sk-0123456789")
    terminal.print(table)
    complain("error: sk-0123456789")
    try:
        raise ValueError("sk-0123456789")
    except ValueError as error:
        show_traceback(error)
    printed = terminal.file.getvalue() + capsys.readouterr().err
    assert "sk-0123" not in printed
    assert printed.count("(SOME_API_KEY)") >= 5


def test_visible_text_keeps_its_line_breaks():
    assert visible("a\nb\tc\u2028") == "a\nb\\tc\\u2028"


def test_nothing_else_prints():
    """Neither print, nor a console of rich's, nor a write to a standard stream, in any other module."""
    root = Path(harness.__file__).parent
    printing = set()
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Name) and called.id in ("print", "Console"):
                printing.add(file)
            if isinstance(called, ast.Attribute) and called.attr in ("write", "writelines"):
                target = called.value
                if isinstance(target, ast.Attribute) and target.attr in ("stdout", "stderr"):
                    printing.add(file)
    assert {file.relative_to(root).as_posix() for file in printing} == {"core/terminal.py"}


def test_a_reader_that_has_gone_is_a_broken_pipe():
    """As with `| head`: the command line then ends without a traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError), open(writing, "w") as file:
        Terminal(file=file).say("x" * 100_000)
